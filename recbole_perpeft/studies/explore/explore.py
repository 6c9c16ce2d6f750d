"""A page about the groups of a trained PerPEFT: who they are, what they buy and what they look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from plotly.graph_objects import Figure
from sklearn.decomposition import PCA
from torch.nn import functional
from tqdm import tqdm

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.whole import written_whole
from recbole_perpeft.models.perpeft.grouping import global_user_vectors
from recbole_perpeft.studies.explore import parts
from recbole_perpeft.studies.explore.exploration import Exploration
from recbole_perpeft.studies.explore.looks import Look
from recbole_perpeft.studies.explore.pictures import looked_at
from recbole_perpeft.studies.report.escape import in_html
from recbole_perpeft.studies.report.page import COLOURS, Chapter, new_figure, to_html
from recbole_perpeft.studies.report.tables import Cell, Table

_TYPICAL_ITEMS, _TYPICAL_WORDS, _NEIGHBOURS = 8, 12, 6
_MOST_USERS, _MOST_LISTED = 3000, 20_000  # on the map; in the search box


def explore(
    model_file: str | Path,
    output: Path,
    items: Sequence[str] = (),
    n_items: int = 8,
    config_dict: Mapping[str, Any] | None = None,
    show_progress: bool = True,
) -> Path:
    """Write a page about the groups of a trained PerPEFT: one HTML file, which needs no network.

    Args:
        model_file: `best.pth` of a run, or its folder.
        output: The file to write.
        items: Tokens of the items that are shown side by side; by default the most contested ones.
        n_items: How many of these.
        config_dict: Settings to change, such as `data_path`.
        show_progress: Whether to show a progress bar.

    Returns:
        The file.

    Raises:
        PerPEFTError: The model has no groups, an item is unknown, or the file cannot be written.
    """
    found = Exploration(model_file, config_dict)
    chosen = found.items_named(items) if items else found.contested_items(n_items)
    chapters = [
        _introduction(found),
        Chapter("Groups", html=[parts.cards(_card(found, group) for group in range(len(found.groups)))]),
        _looks(found, chosen, show_progress),
        _neighbours(found, chosen),
        _map(found),
        Chapter("Search", html=[parts.search(_search_data(found))]),
    ]
    page = to_html(f"Groups of {found.config['model']} on {found.config['dataset']}", chapters, parts.STYLE)
    output.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(output) as draft:
        draft.write_text(page, encoding="utf-8")
    return output


def _introduction(found: Exploration) -> Chapter:
    rows = []
    for group, service in zip(found.groups, found.served, strict=True):
        gain = service.own - service.everybody
        error = "" if np.isnan(service.interval) else f" ± {service.interval:.4f}"
        numbers = ["", "", ""]
        if not np.isnan(gain):
            numbers = [f"{service.own:.4f}", f"{service.everybody:.4f}", f"{gain:+.4f}{error}"]
        rows.append([Cell(text) for text in (group.name, f"{len(group.users):,}", *numbers)])
    header = ["group", "users", found.metric, "with the global module", "difference, 95 % interval"]
    note = (
        "Both columns are over the same test users. The global module is that of this run, beside what groups share."
    )
    return Chapter(tables=[Table("", header, rows, note)])


def _card(found: Exploration, group: int) -> str:
    service, members = found.served[group], found.groups[group]
    tested = f"{found.metric} {service.own:.4f}, with the global module {service.everybody:.4f}."
    sentences = [
        f"{len(members.users):,} users, {found.counts[group].sum():,} interactions in the train part. "
        + ("No user of it is tested." if np.isnan(service.own) else tested)
    ]
    items = [found.shown(item, f"{lift:.1f} times") for item, lift in found.typical.most(group, _TYPICAL_ITEMS)]
    words, typical = found.words
    of_titles = [(words[word], lift) for word, lift in typical.most(group, _TYPICAL_WORDS)]
    return parts.card(members.name, sentences, items, of_titles)


def _looks(found: Exploration, chosen: Sequence[int], show_progress: bool) -> Chapter:
    title = "What each group looks at"
    try:
        eyes = found.eyes()
    except PerPEFTError as error:
        return Chapter(title, [f"Not shown here: {error}."])
    explained = (
        "Warm colour shows where the score of an item for the group's mean user comes from: patches of the photo "
        "and words of the title, by gradient-weighted attention (Chefer, Gur and Wolf, ICCV 2021). Below each "
        "group's view stands the same for the encoder without the group's module, if it has one."
    )
    blocks = []
    for item in tqdm(chosen, desc="Look at items", unit="item", disable=not show_progress):
        with_module, without = eyes.look(item, found.titles[item])
        pixels = eyes.pixels(item)
        name = found.name_of(item)
        blocks.append(parts.views(name, _views(found, pixels, with_module)))
        if without:
            blocks.append(parts.views(f"{name}: without the groups' modules", _views(found, pixels, without)))
    return Chapter(title, [explained], html=blocks)


def _views(found: Exploration, pixels: np.ndarray, looks: Sequence[Look]) -> list[str]:
    return [_view(group.name, pixels, look) for group, look in zip(found.groups, looks, strict=True)]


def _view(label: str, pixels: np.ndarray, look: Look) -> str:
    first = max(look.words, key=lambda word: word[1], default=("", 0.0))
    row, column = np.unravel_index(look.patches.argmax(), look.patches.shape)
    rows, columns = look.patches.shape
    place = f"most at patch {row + 1} of {rows} from the top, {column + 1} of {columns} from the left"
    said = f"{label}: {place}; word {first[0]}"
    return parts.view(label, looked_at(pixels, look.patches), look.words, said)


def _neighbours(found: Exploration, chosen: Sequence[int]) -> Chapter:
    blocks = []
    spaces = [functional.normalize(found.model.catalogue(g).float(), dim=1) for g in range(len(found.groups))]
    for item in chosen:
        blocks.append(f"<h3>{in_html(found.name_of(item))}</h3>")
        for group, space in zip(found.groups, spaces, strict=True):
            similar = space @ space[item]
            similar[[0, item]] = -torch.inf
            best = similar.topk(min(_NEIGHBOURS, len(similar) - 2))
            near = [found.shown(int(i), f"{s:.2f}") for s, i in zip(best.values.tolist(), best.indices, strict=True)]
            blocks.append(f"<p><strong>{group.name}</strong></p>{parts.item_list(near)}")
    return Chapter("Neighbours in each group's space", ["By the cosine of item vectors."], html=blocks)


def _map(found: Exploration) -> Chapter:
    users = np.flatnonzero(found.user_group >= 0)
    rng = np.random.default_rng(int(found.config["seed"]))
    drawn = np.sort(rng.choice(users, min(_MOST_USERS, len(users)), replace=False))
    vectors = global_user_vectors(found.model, drawn, found.histories)
    places = PCA(2, random_state=0).fit_transform(vectors.numpy()) if min(vectors.shape) > 1 else None
    nearest = found.model.nearest_group(vectors.to(found.model.device)).cpu().numpy()
    current = found.user_group[drawn]
    figures = {} if places is None else {"Users, by two principal components": _scatter(found, places, current)}
    rows = [
        [
            Cell(group.name),
            *(Cell(f"{((current == g) & (nearest == other)).sum():,}") for other in range(len(found.groups))),
        ]
        for g, group in enumerate(found.groups)
    ]
    header = ["is in", *(f"nearest centroid: {group.name}" for group in found.groups)]
    note = "Groups whose users were moved by likelihood (regroup_every) differ from those of the nearest centroid."
    return Chapter(
        "Users",
        [f"{len(drawn):,} of {len(users):,} users, by their vectors under the global module."],
        [Table("", header, rows, note)],
        figures,
    )


def _scatter(found: Exploration, places: np.ndarray, groups: np.ndarray) -> Figure:
    figure = new_figure("first component", "second component", height=560)
    for number, group in enumerate(found.groups):
        x, y = places[groups == number].T
        marker = {"color": COLOURS[number % len(COLOURS)], "size": 5, "opacity": 0.6}
        figure.add_scatter(x=x, y=y, mode="markers", name=group.name, marker=marker)
    return figure


def _search_data(found: Exploration) -> dict[str, Any]:
    users, own, _ = found.ranks
    table = pd.DataFrame({"user": users, "rank": own}).drop_duplicates("user", keep="last").head(_MOST_LISTED)
    popular = np.argsort(-found.counts.sum(0), kind="stable")
    items = popular[popular > 0][:_MOST_LISTED]
    return {
        "groups": [group.name for group in found.groups],
        "items": [[str(found.item_tokens[i]), found.titles[i], found.counts[:, i].tolist()] for i in items],
        "users": [
            [str(found.user_tokens[user]), found.groups[found.user_group[user]].name, rank]
            for user, rank in table.itertuples(index=False)
            if found.user_group[user] >= 0
        ],
    }
