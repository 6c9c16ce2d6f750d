"""The page about groups, from a run on a shop whose titles attack it."""

import json
import re
import runpy
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from recbole_perpeft.cli.main import main
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.history import HistoryIndex
from recbole_perpeft.runs.run import run
from recbole_perpeft.studies.explore import exploration
from recbole_perpeft.studies.explore.characters import Typical, counts_by_group, ranks_under, services, words_of
from recbole_perpeft.studies.explore.exploration import Exploration
from recbole_perpeft.studies.explore.explore import explore
from recbole_perpeft.studies.explore.pictures import Album
from support.browser import needs_browser, shown
from support.versions import shows_attention

HOSTILE = (
    "<script>document.title='TAKEN'</script> lamp",
    '"><img src=x onerror="document.title=\'TAKEN\'"> & lamp',
    "</script><script>document.title='TAKEN'</script><!-- lamp",
)


@pytest.fixture(scope="module")
def trained(small_aspects, tmp_path_factory):
    """Settings of a finished run with groups, and its folder; the most sold items have hostile titles."""
    path = tmp_path_factory.mktemp("explore")
    shutil.copytree(small_aspects / "aspects", path / "aspects")
    sold = [line.split("\t")[1] for line in (path / "aspects" / "aspects.inter").read_text().splitlines()[1:]]
    most = sorted(set(sold), key=sold.count)[-len(HOSTILE) :]
    titles = dict(zip(most, HOSTILE, strict=True))
    header, *items = (path / "aspects" / "aspects.item").read_text().splitlines()
    lines = [f"{token}\t{titles.get(token, title)}" for token, title in (line.split("\t") for line in items)]
    (path / "aspects" / "aspects.item").write_text("\n".join([header, *lines]) + "\n")
    settings = {"dataset": "aspects", "data_path": str(path), "cache_folder": str(path / "cache")}
    settings |= {"use_gpu": False, "show_progress": False, "epochs_global": 1, "epochs": 1, "n_groups": 2}
    run("PerPEFT", config_dict=settings | {"run_folder": str(path / "run"), "train_batch_size": 64})
    return path / "run", most


@pytest.fixture(scope="module")
def page(trained):
    return explore(trained[0], trained[0] / "explore.html", trained[1], show_progress=False)


class Tags(HTMLParser):
    """Names and attributes of all elements, and what stands in scripts."""

    def __init__(self, text):
        super().__init__()
        self.found, self.scripts, self._inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._inside = tag == "script"

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.scripts.append(data)


@shows_attention
def test_the_page_is_one_file_in_which_titles_stay_text(page):
    tags = Tags(page.read_text(encoding="utf-8"))
    sources = [attributes["src"] for _, attributes in tags.found if "src" in attributes]
    assert len(sources) > 10
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not [tag for tag, attributes in tags.found if "onerror" in attributes or tag in ("link", "iframe")]
    assert all(attributes["alt"] for tag, attributes in tags.found if tag == "img")
    data = next(json.loads(script) for script in tags.scripts if script.startswith('{"groups"'))
    assert set(HOSTILE) <= {title for _, title, _ in data["items"]}
    assert sum(sum(counts) for _, _, counts in data["items"]) > 500
    assert len(data["users"]) == 150


@shows_attention
@needs_browser
def test_a_browser_runs_no_script_of_titles_and_finds_items(page, trained):
    text = page.read_text(encoding="utf-8")
    probe = "<script>query.value='lamp';query.dispatchEvent(new Event('input'));</script></body>"
    (page.parent / "probe.html").write_text(text.replace("</body>", probe), encoding="utf-8")
    document = shown(page.parent / "probe.html", page.parent / "profile")
    assert "<title>Groups of PerPEFT on aspects</title>" in document
    rows = re.search(r'<table id="results">(.*?)</table>', document, re.DOTALL)[1]
    assert rows.count("TAKEN") == len(HOSTILE)  # as text, in the cells of what the search found
    assert "&lt;script&gt;" in rows


def test_the_ranks_are_those_that_the_run_wrote_unless_they_are_of_another_model(trained, tmp_path, monkeypatch):
    asked = []

    def counted(model, loader, as_everybody):
        asked.append(as_everybody)
        return ranks_under(model, loader, as_everybody)

    monkeypatch.setattr(exploration, "ranks_under", counted)
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    found = Exploration(folder)
    expected = found.ranks[1]
    assert asked.count(False) == 1, "of the first batch alone"
    table = pd.read_parquet(folder / "test_ranks.parquet")
    assert expected.tolist() == table["rank"].tolist()
    for other in (table.assign(rank=table["rank"] + 1), table.assign(group=1 - table["group"]), table[::-1], None):
        (folder / "test_ranks.parquet").unlink()
        if other is not None:
            other.to_parquet(folder / "test_ranks.parquet", index=False)
        del found.ranks  # which are kept
        assert found.ranks[1].tolist() == expected.tolist()
    assert [group.name for group in found.groups] == ["group 0", "group 1"], "numbered as in lists"


@shows_attention
def test_the_command_says_where_and_what_cannot_be_shown(trained, capsys, tmp_path):
    flags = ["explore", f"--run={trained[0]}", "--n_items=1", f"--output={tmp_path / 'page.html'}", "--no_progress"]
    assert main(flags) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    assert main([*flags, "--items=no-such-item"]) == 2
    assert "not in the data set aspects: no-such-item" in capsys.readouterr().err
    assert main([*flags[:2], "--n_items=0"]) == 2


def test_a_model_without_groups_is_refused(prepare, monkeypatch):
    prepared = prepare("GlobalPEFT", peft_type="none")
    parts = (prepared.config, prepared.model, prepared.dataset, prepared.train_data, None, None)
    monkeypatch.setattr("recbole_perpeft.studies.explore.exploration.load", lambda *_: parts)
    with pytest.raises(PerPEFTError, match="GlobalPEFT has no groups of users to look at; train PerPEFT"):
        Exploration("run")


def test_groups_are_judged_by_the_whole_catalogue_however_the_run_was_tested(trained):
    usual = Exploration(trained[0])
    drawn = Exploration(trained[0], {"eval_args": "{mode: uni20}"})
    for ours, theirs in zip(drawn.ranks, usual.ranks, strict=True):
        assert np.array_equal(ours, theirs)
    with pytest.raises(PerPEFTError, match="leaves no test items"):
        Exploration(trained[0], {"eval_args": {"split": {"LS": "valid_only"}}})


def test_targets_that_leave_the_candidates_rank_last(prepare):
    """As in the evaluation, with `mask_history: all`."""
    prepared = prepare(peft_type="none", mask_history="all")
    model = prepared.personalise().eval()
    (interaction, _, row, items), *_ = prepared.test_data
    _, ranks = ranks_under(model, [(interaction, (row, items), row, items)], as_everybody=True)
    assert (ranks > model.n_items - 5).all() and len(ranks) == len(items)


def test_ranks_under_either_module_equal_those_of_a_loop(prepare):
    prepared = prepare(peft_type="none", mask_history="keep_target")
    model = prepared.personalise().eval()
    users, own = ranks_under(model, prepared.test_data, as_everybody=False)
    _, everybody = ranks_under(model, prepared.test_data, as_everybody=True)
    rows = {}
    for interaction, history, _, items in prepared.test_data:
        for place, user in enumerate(interaction["user_id"].tolist()):
            seen = [] if history is None else history[1][history[0] == place].tolist()
            row = interaction[torch.tensor([place])]
            rows[user] = row, set(seen) - {int(items[place])}, int(items[place])
    for index in (0, 7, len(users) - 1):
        row, seen, target = rows[int(users[index])]
        for ranks, group in ((own, int(model.user_group[users[index]])), (everybody, None)):
            vectors = model.catalogue(group)
            scores = (model.user_vectors(row["item_id_list"], row["item_length"], vectors) @ vectors.T)[0]
            better = [i for i in range(1, model.n_items) if i not in seen and scores[i] > scores[target]]
            assert ranks[index] == 1 + len(better)


def test_counts_and_typical_things_equal_loops():
    rng = np.random.default_rng(0)
    pairs, groups = rng.integers(0, [20, 9], (300, 2)), rng.integers(-1, 3, 20)
    counts = counts_by_group(HistoryIndex.from_pairs(pairs[:, 0], pairs[:, 1], 20), groups, 3, 9)
    expected = np.zeros((3, 9))
    for user, item in pairs:
        if groups[user] >= 0:
            expected[groups[user], item] += 1
    np.testing.assert_array_equal(counts, expected)
    typical, total = Typical.of(counts), expected.sum()
    for g in range(3):
        for i in range(9):
            prior = 500 * expected[:, i].sum() / total
            own, others = expected[g, i] + prior, expected[:, i].sum() - expected[g, i] + prior
            size, rest = expected[g].sum() + 500, total - expected[g].sum() + 500
            odds = np.log(own / (size - own)) - np.log(others / (rest - others))
            assert typical.evidence[g, i] == pytest.approx(odds / np.sqrt(1 / own + 1 / others))
            assert typical.lift[g, i] == pytest.approx(own / size / (expected[:, i].sum() / total))
    assert [place for place, _ in typical.most(1, 9)] == [
        i for i in np.argsort(-typical.evidence[1], kind="stable") if typical.evidence[1, i] > 0
    ]


def test_what_nobody_takes_is_typical_of_nobody():
    typical = Typical.of(np.array([[3, 0, 0], [0, 4, 0]]))
    assert np.isfinite(typical.lift).all()
    assert np.isfinite(typical.evidence).all()
    assert [place for place, _ in typical.most(0, 3)] == [0]
    assert words_of(["", "1 22"])[1] == []
    assert words_of(["Red red lamp", "lamp"])[0].sum() == 3


def test_service_is_a_paired_difference_by_group():
    own, everybody = np.array([1, 2, 30, 1]), np.array([2, 2, 30, 30])
    first, second, empty = services("hit@1", own, everybody, np.array([0, 0, 0, 1]), 3)
    assert (first.own, first.everybody, first.n_users) == (pytest.approx(1 / 3), 0.0, 3)
    assert first.interval == pytest.approx(1.96 * np.std([1, 0, 0], ddof=1) / np.sqrt(3))
    assert second.n_users == 1
    assert np.isnan([second.interval, empty.own]).all()


def test_photos_beyond_the_limit_are_left_out(small_aspects):
    photos = sorted((small_aspects / "aspects" / "images").iterdir())[:4]
    whole = Album([*photos, None])
    sizes = [len(whole.photo(row)) for row in range(4)]
    assert whole.photo(4) is None
    full = Album(photos, limit=sum(sizes[:2]))
    assert [full.photo(row) is not None for row in (0, 1, 2, 0)] == [True, True, False, True]
    assert full.n_left_out == 1


def test_photos_that_are_damaged_or_gone_are_none(tmp_path):
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    (tmp_path / "empty.jpg").write_bytes(b"")
    album = Album([tmp_path / "cut.png", tmp_path / "empty.jpg", tmp_path / "gone.png"])
    assert [album.photo(row) for row in range(3)] == [None, None, None]


@shows_attention
def test_who_looks_at_colour_words(trained):
    script = runpy.run_path(str(Path(__file__).resolve().parents[3] / "scripts" / "colour_words.py"))
    found = Exploration(trained[0])
    groups = pd.read_csv(found.config.dataset_folder / "aspects.user", sep="\t").set_axis(["user", "group"], axis=1)
    by_colour = groups.loc[groups["group"] == "colour", "user"]
    n_colour = [by_colour.isin(found.user_tokens[group.users]).sum() for group in found.groups]
    group, of_colour = script["colour_group"](found)
    assert group == np.argmax(n_colour) and of_colour == pytest.approx(max(n_colour) / len(found.groups[group].users))
    named = np.array([bool(script["COLOURS"] & set(title.lower().split())) for title in found.titles])
    items = np.flatnonzero((found.counts > 0).all(0) & named)[:2]
    table = script["shares"](found, items)
    assert table.shape == (2, 2, 2, 2) and (table >= 0).all() and (table <= 1 + 1e-6).all() and table.max() > 0
    # As the page shows it, by the group's mean user.
    with_module = found.eyes().look(items[0], found.titles[items[0]])[0]
    assert table[0, 0, 0].tolist() == pytest.approx([script["share"](look) for look in with_module])
    buyers = script["buyers"](found)
    users, bought = found.histories.pairs()
    who = np.intersect1d(users[bought == items[0]], found.groups[1].users)
    expected = exploration.global_user_vectors(found.model, who, found.histories, 1).sum(0)
    torch.testing.assert_close(buyers[1][items[0]], expected)
