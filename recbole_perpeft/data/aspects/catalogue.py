"""The made-up data set ``aspects``: a catalogue in which the truth about users is known.

Every product shows one value of each of four aspects (`recbole_perpeft.data.aspects.drawing`). Every user belongs to
one hidden interest group, and every group attends to one aspect: a user of the group "colour" holds to one colour
(some to two, if asked for) and does not care what else the product is. A share of the purchases is random. Histories
are short, so item ids alone carry little, while the pictures and titles carry what the user attends to.

Any size can be made (`AspectsSettings`): nothing loops over users or purchases.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.settings import Settings, setting
from recbole_perpeft.data.aspects.drawing import ASPECTS, draw_image, draw_title
from recbole_perpeft.data.aspects.sentences import draw_explanations

GROUPS = tuple(ASPECTS)  # one hidden group an aspect, named after it
START = 1_577_836_800  # 2020-01-01, seconds
PERIOD = 2 * 365 * 86_400
MEAN_GAP = 14 * 86_400
LEAST_GAP = 3_600  # purchases of one user stay apart even when times are held in float32
TOKEN_ALPHABET = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
TOKEN_LENGTH = 8
MAX_REDRAWS = 50
EXPLANATION_STREAM = 7  # of random numbers; 0 to 6 make all else
EXPLAINED = 0.6  # share of purchases that their users explain


@dataclass(frozen=True)
class AspectsSettings(Settings):
    """What decides the catalogue and its users."""

    n_items: int = setting(1200, "number of products")
    n_users: int = setting(3000, "number of users", least=1)
    seed: int = setting(2026, "seed of everything random", least=0)
    image_side: int = setting(48, "height and width of the pictures in pixels", least=16)
    min_purchases: int = setting(5, "fewest purchases of a user", least=1)
    max_purchases: int = setting(9, "most purchases of a user; numbers between are equally likely")
    noise: float = setting(0.1, "share of purchases that ignore what the user attends to", least=0, most=1)
    second_favourite: float = setting(
        0.0, "share of users who hold to two values of their aspect instead of one", least=0, most=1
    )
    value_skew: float = setting(
        0.0, "how unevenly a group likes the values of its aspect: rank r has weight r ** -value_skew", least=0
    )
    popularity_spread: float = setting(0.3, "standard deviation of the logarithm of the products' popularity", least=0)

    def check(self) -> None:
        """Nobody buys more than there is."""
        if self.max_purchases < self.min_purchases:
            raise PerPEFTError(f"max_purchases is {self.max_purchases}: it must be at least min_purchases")
        if self.n_items < 4 * self.max_purchases:
            raise PerPEFTError(f"n_items is {self.n_items}: it must be at least 4 * max_purchases")


@dataclass(frozen=True)
class AspectsTables:
    """The data set in memory.

    Args:
        items: a row a product, in the order of the tokens: ``item_id``, ``title`` and a column an aspect, which holds
            the index of the value (the truth; not written to the files).
        interactions: a row a purchase, in the order of time: ``user_id``, ``item_id``, ``timestamp`` in seconds.
        users: a row a user, in the order of the tokens: ``user_id``, ``hidden_group``.
        explanations: a row an explained purchase, in the order of time: ``user_id``, ``item_id``, ``rating``,
            ``feature`` (the word it is about), ``headline``, ``explanation``. Users explain by the aspect they attend
            to.
    """

    items: pd.DataFrame
    interactions: pd.DataFrame
    users: pd.DataFrame
    explanations: pd.DataFrame


class _Shelf:
    """Draws products in proportion to their popularity, out of all of them or out of those with a given value."""

    def __init__(self, values: np.ndarray, popularity: np.ndarray) -> None:
        self.order = np.argsort(values, kind="stable")
        self.bounds = np.concatenate([[0.0], np.cumsum(popularity[self.order])])  # [n_items + 1]
        self.starts = np.searchsorted(values[self.order], np.arange(values.max() + 2))  # [n_values + 1]

    def draw(self, uniform: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Items [n] for numbers ``uniform`` [n] in [0, 1) and wanted values [n]."""
        first, last = self.starts[wanted], self.starts[wanted + 1]
        low, high = self.bounds[first], self.bounds[last]
        place = np.searchsorted(self.bounds, low + uniform * (high - low), side="right") - 1
        return self.order[np.clip(place, first, last - 1)]


def _draw_tokens(rng: np.random.Generator, n: int) -> np.ndarray:
    """Different random strings [n], sorted: they tell nothing about what they name."""
    numbers = np.empty(0, dtype=np.int64)
    while len(numbers) < n:
        more = rng.integers(len(TOKEN_ALPHABET) ** TOKEN_LENGTH, size=n + n // 8 + 8)
        numbers = np.unique(np.concatenate([numbers, more]))
    numbers = np.sort(rng.choice(numbers, size=n, replace=False))
    powers = len(TOKEN_ALPHABET) ** np.arange(TOKEN_LENGTH - 1, -1, -1)
    characters = TOKEN_ALPHABET[numbers[:, None] // powers % len(TOKEN_ALPHABET)]
    return np.ascontiguousarray(characters).view(f"<U{TOKEN_LENGTH}")[:, 0]


def _draw_values(rng: np.random.Generator, n_items: int) -> dict[str, np.ndarray]:
    """The value of every product in every aspect; all values of an aspect are equally frequent, give or take one."""
    return {name: rng.permutation(np.arange(n_items) % len(values)) for name, values in ASPECTS.items()}


def _draw_favourites(rng: np.random.Generator, group: np.ndarray, settings: AspectsSettings) -> np.ndarray:
    """First and second favourite value of every user [n_users, 2]; equal where the user has only one."""
    favourites = np.empty((len(group), 2), dtype=np.int64)
    for index, aspect in enumerate(GROUPS):
        members = np.flatnonzero(group == index)
        n_values = len(ASPECTS[aspect])
        weights = np.arange(1, n_values + 1) ** -settings.value_skew
        liking = np.log(rng.permutation(weights))
        # The two largest of (log weight + Gumbel noise) are a draw of two without replacement.
        ranked = np.argsort(-(liking + rng.gumbel(size=(len(members), n_values))), axis=1)
        favourites[members] = ranked[:, :2]
    single = rng.random(len(group)) >= settings.second_favourite
    favourites[single, 1] = favourites[single, 0]
    return favourites


def _repeated(user: np.ndarray, item: np.ndarray, n_items: int) -> np.ndarray:
    """Places of the purchases that repeat an earlier purchase of the same user."""
    key = user * n_items + item
    order = np.argsort(key, kind="stable")
    again = np.flatnonzero(key[order][1:] == key[order][:-1]) + 1
    return order[again]


def _draw_purchases(
    rng: np.random.Generator, values: dict[str, np.ndarray], group: np.ndarray, settings: AspectsSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User and item number of every purchase, both [n_purchases], and the users' favourite values [n_users, 2].

    Nobody buys a product twice.
    """
    popularity = np.exp(settings.popularity_spread * rng.standard_normal(settings.n_items))
    shelves = [_Shelf(values[aspect], popularity) for aspect in GROUPS]
    whole = _Shelf(np.zeros(settings.n_items, dtype=np.int64), popularity)
    favourites = _draw_favourites(rng, group, settings)
    counts = rng.integers(settings.min_purchases, settings.max_purchases + 1, size=settings.n_users)
    user = np.repeat(np.arange(settings.n_users), counts)

    def draw(buyer: np.ndarray, noise: float) -> np.ndarray:
        uniform = rng.random(len(buyer))
        wanted = favourites[buyer, rng.integers(2, size=len(buyer))]
        attended = np.where(rng.random(len(buyer)) < noise, -1, group[buyer])
        item = whole.draw(uniform, np.zeros(len(buyer), dtype=np.int64))
        for index, shelf in enumerate(shelves):
            mine = attended == index
            item[mine] = shelf.draw(uniform[mine], wanted[mine])
        return item

    item = draw(user, settings.noise)
    places = _repeated(user, item, settings.n_items)
    redraws = 0
    while len(places):
        # A favourite value with hardly any products left: buy something else.
        item[places] = draw(user[places], settings.noise if redraws < MAX_REDRAWS else 1.0)
        touched = np.zeros(settings.n_users, dtype=bool)
        touched[user[places]] = True
        candidates = np.flatnonzero(touched[user])
        places = candidates[_repeated(user[candidates], item[candidates], settings.n_items)]
        redraws += 1
    return user, item, favourites


def _draw_times(rng: np.random.Generator, user: np.ndarray) -> np.ndarray:
    """Time of every purchase in whole seconds [n_purchases]; a user's purchases (which lie together) ascend."""
    first = np.flatnonzero(np.diff(user, prepend=-1))
    gaps = LEAST_GAP + rng.exponential(MEAN_GAP, size=len(user)).astype(np.int64)
    gaps[first] = rng.integers(PERIOD, size=len(first))
    elapsed = np.cumsum(gaps)
    before = elapsed[first] - gaps[first]
    return START + elapsed - np.repeat(before, np.diff(np.append(first, len(user))))


def aspects_tables(settings: AspectsSettings) -> AspectsTables:
    """The data set `aspects` without its pictures, in memory.

    Args:
        settings: size, seed and behaviour.

    Returns:
        The tables; the same for the same settings. The image side changes nothing in them.
    """
    streams = [np.random.default_rng([settings.seed, stream]) for stream in range(6)]
    item_tokens = _draw_tokens(streams[0], settings.n_items)
    user_tokens = _draw_tokens(streams[1], settings.n_users)
    values = _draw_values(streams[2], settings.n_items)
    titles = [
        draw_title(streams[3], {name: int(value[item]) for name, value in values.items()})
        for item in range(settings.n_items)
    ]
    group = streams[4].permutation(np.arange(settings.n_users) % len(GROUPS))
    user, item, favourites = _draw_purchases(streams[4], values, group, settings)
    time = _draw_times(streams[5], user)
    order = np.lexsort((user, time))
    purchases = pd.DataFrame({"user_id": user_tokens[user[order]], "item_id": item_tokens[item[order]]})
    # The value that each purchase has of the aspect its user attends to.
    attended = np.stack([values[aspect] for aspect in GROUPS])[group[user], item]
    likes = (favourites[user] == attended[:, None]).any(axis=1)
    rng = np.random.default_rng([settings.seed, EXPLANATION_STREAM])
    said = draw_explanations(rng, group[user[order]], attended[order], likes[order])
    explained = rng.random(len(order)) < EXPLAINED
    return AspectsTables(
        items=pd.DataFrame({"item_id": item_tokens, "title": titles, **values}),
        interactions=purchases.assign(timestamp=time[order]),
        users=pd.DataFrame({"user_id": user_tokens, "hidden_group": np.array(GROUPS)[group]}),
        explanations=pd.concat([purchases, said], axis=1)[explained].reset_index(drop=True),
    )


def product_image(items: pd.DataFrame, row: int, settings: AspectsSettings) -> np.ndarray:
    """The picture of the product in a row of `AspectsTables.items`: uint8 [image_side, image_side, 3]."""
    rng = np.random.default_rng([settings.seed, 6, row])
    return draw_image(rng, {name: int(items.at[row, name]) for name in ASPECTS}, settings.image_side)


def _write(folder: Path, name: str, settings: AspectsSettings, show_progress: bool) -> None:
    tables = aspects_tables(settings)
    files = {
        "inter": tables.interactions.rename(
            columns={"user_id": "user_id:token", "item_id": "item_id:token", "timestamp": "timestamp:float"}
        ),
        "item": tables.items[["item_id", "title"]].rename(
            columns={"item_id": "item_id:token", "title": "title:token_seq"}
        ),
        "user": tables.users.rename(columns={"user_id": "user_id:token", "hidden_group": "hidden_group:token"}),
    }
    for suffix, table in files.items():
        table.to_csv(folder / f"{name}.{suffix}", sep="\t", index=False, lineterminator="\n", encoding="utf-8")
    lines = tables.explanations.to_json(orient="records", lines=True, force_ascii=False)
    (folder / f"{name}.explanations.jsonl").write_text(lines, encoding="utf-8", newline="\n")
    (folder / "images").mkdir()
    tokens = tqdm(tables.items["item_id"], desc="drawing products", unit="item", disable=not show_progress)
    for row, token in enumerate(tokens):
        image = Image.fromarray(product_image(tables.items, row, settings))
        image.save(folder / "images" / f"{token}.png", optimize=True)


def make_aspects(
    folder: Path | str,
    settings: AspectsSettings | None = None,
    *,
    name: str = "aspects",
    exist_ok: bool = False,
    show_progress: bool = True,
) -> Path:
    """Writes the data set as RecBole's atomic files with pictures.

    The folder gets ``<name>.inter`` (``user_id:token item_id:token timestamp:float``), ``<name>.item``
    (``item_id:token title:token_seq``), ``<name>.user`` (``user_id:token hidden_group:token``: the truth, which no
    model reads), ``<name>.explanations.jsonl`` (`recbole_perpeft.data.explanations`) and ``images/<item_id>.png``. It
    appears whole or not at all.

    Args:
        folder: where to write; RecBole finds it when its last part is ``name``.
        settings: size, seed and behaviour; the bundled data set by default.
        name: name of the data set.
        exist_ok: leave a folder alone that is already there (also one that another process finishes meanwhile).
        show_progress: show a progress bar.

    Returns:
        The folder.

    Raises:
        PerPEFTError: the folder exists and ``exist_ok`` is not set.
    """
    folder = Path(folder).resolve()
    if folder.exists():
        return _accept(folder, name, exist_ok)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        draft.chmod(0o755)
        _write(draft, name, settings or AspectsSettings(), show_progress)
        try:
            draft.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            return _accept(folder, name, exist_ok)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _accept(folder: Path, name: str, exist_ok: bool) -> Path:
    if exist_ok and (folder / f"{name}.inter").is_file():
        return folder
    raise PerPEFTError(f"{folder} exists already: delete it or choose another folder")
