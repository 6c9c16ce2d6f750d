"""The made-up data set: reproducible, true to its description, and silent about what is hidden."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import spearmanr

from recbole_perpeft.cli.main import main
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.aspects.catalogue import (
    GROUPS,
    AspectsSettings,
    AspectsTables,
    aspects_tables,
    make_aspects,
    product_image,
)
from recbole_perpeft.data.aspects.drawing import ASPECTS, draw_image, draw_title, title_words

COMMITTED = Path(__file__).parents[3] / "dataset_atomic" / "aspects"
SMALL = AspectsSettings(n_items=80, n_users=120, seed=3, image_side=16)


@pytest.fixture(scope="module")
def tables() -> AspectsTables:
    return aspects_tables(AspectsSettings())


def _purchases(tables: AspectsTables) -> pd.DataFrame:
    """Every purchase with its user's group and its product's values."""
    return tables.interactions.merge(tables.users, on="user_id").merge(tables.items, on="item_id")


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_same_seed_writes_the_same_bytes_and_another_seed_does_not(tmp_path):
    first = _contents(make_aspects(tmp_path / "a", SMALL, show_progress=False))
    again = _contents(make_aspects(tmp_path / "b", SMALL, show_progress=False))
    other = AspectsSettings(n_items=80, n_users=120, seed=4, image_side=16)
    assert first == again
    assert len(first) == 4 + 80
    changed = _contents(make_aspects(tmp_path / "c", other, show_progress=False))
    assert first["aspects.inter"] != changed["aspects.inter"]


def test_committed_data_set_is_what_the_generator_makes(tables, tmp_path):
    if not COMMITTED.is_dir():
        pytest.skip("dataset_atomic/aspects is part of the checkout, not of the wheel")
    made = make_aspects(tmp_path / "aspects", show_progress=False)
    for suffix in ("inter", "item", "user", "explanations.jsonl"):
        assert (COMMITTED / f"aspects.{suffix}").read_bytes() == (made / f"aspects.{suffix}").read_bytes()
    names = sorted(file.name for file in (made / "images").iterdir())
    assert names == sorted(file.name for file in (COMMITTED / "images").iterdir())
    assert names == [f"{token}.png" for token in tables.items["item_id"]]
    for name in names:
        with Image.open(COMMITTED / "images" / name) as committed, Image.open(made / "images" / name) as new:
            assert np.array_equal(np.array(committed), np.array(new)), name


def test_committed_data_set_is_small():
    if not COMMITTED.is_dir():
        pytest.skip("dataset_atomic/aspects is part of the checkout, not of the wheel")
    assert sum(file.stat().st_size for file in COMMITTED.rglob("*") if file.is_file()) <= 6_000_000


def test_files_have_the_columns_of_atomic_files(tmp_path):
    folder = make_aspects(tmp_path / "aspects", SMALL, show_progress=False)
    atomic = [file for file in folder.glob("aspects.*") if file.suffix != ".jsonl"]
    headers = {file.suffix: file.read_text().splitlines()[0].split("\t") for file in atomic}
    assert headers == {
        ".inter": ["user_id:token", "item_id:token", "timestamp:float"],
        ".item": ["item_id:token", "title:token_seq"],
        ".user": ["user_id:token", "hidden_group:token"],
    }


def test_nobody_buys_twice_and_histories_are_short(tables):
    default = AspectsSettings()
    assert not tables.interactions.duplicated(["user_id", "item_id"]).any()
    counts = tables.interactions["user_id"].value_counts()
    assert len(counts) == default.n_users
    assert counts.min() == default.min_purchases and counts.max() == default.max_purchases


def test_times_of_a_user_differ_even_as_float32(tables):
    seconds = tables.interactions["timestamp"].astype(np.float32)
    assert not pd.DataFrame({"user": tables.interactions["user_id"], "time": seconds}).duplicated().any()
    assert tables.interactions["timestamp"].is_monotonic_increasing
    first = tables.interactions.groupby("user_id")["timestamp"].min()
    assert first.max() - first.min() > 365 * 86_400


def test_groups_attend_to_their_aspect_only(tables):
    default = AspectsSettings()
    bought = _purchases(tables)
    for group in GROUPS:
        mine = bought[bought["hidden_group"] == group]
        for aspect in ASPECTS:
            counts = mine.groupby("user_id")[aspect].value_counts().unstack(fill_value=0)
            two_largest = np.sort(counts.to_numpy(), axis=1)[:, -2:].sum() / counts.to_numpy().sum()
            if aspect == group:
                assert two_largest >= 1 - default.noise
            else:
                assert two_largest < 0.6
        if default.second_favourite < 1:
            favourite = mine.groupby("user_id")[group].agg(lambda column: column.value_counts().iloc[0] / len(column))
            assert (favourite > 0.75).mean() > 0.5 * (1 - default.second_favourite)


def test_noise_is_the_share_of_purchases_outside_the_favourite():
    noisy = AspectsSettings(n_users=4000, noise=0.3, second_favourite=0.0, value_skew=0.0, seed=8)
    bought = _purchases(aspects_tables(noisy))
    for group in GROUPS:
        mine = bought[bought["hidden_group"] == group]
        favourite = mine.groupby("user_id")[group].transform(lambda column: column.mode()[0])
        expected = 0.3 * (1 - 1 / len(ASPECTS[group]))
        assert (mine[group] != favourite).mean() == pytest.approx(expected, abs=0.03)


def test_groups_and_values_are_balanced(tables):
    sizes = tables.users["hidden_group"].value_counts()
    assert set(sizes.index) == set(GROUPS) and sizes.max() - sizes.min() <= 1
    for aspect, values in ASPECTS.items():
        counts = np.bincount(tables.items[aspect], minlength=len(values))
        assert counts.max() - counts.min() <= 1


def test_value_skew_makes_some_values_liked_more():
    def largest_share(value_skew: float) -> float:
        bought = _purchases(aspects_tables(AspectsSettings(value_skew=value_skew, second_favourite=0.0)))
        mine = bought[bought["hidden_group"] == "colour"]
        return mine["colour"].value_counts(normalize=True).max()

    assert largest_share(0.0) < 0.13 < 0.3 < largest_share(1.5)


def test_tokens_and_their_order_tell_nothing(tables):
    items = tables.items
    assert items["item_id"].is_unique and items["item_id"].is_monotonic_increasing
    assert items["item_id"].str.fullmatch("[A-Z]{8}").all() and tables.users["user_id"].str.fullmatch("[A-Z]{8}").all()
    position = np.arange(len(items))
    for aspect in ASPECTS:
        assert abs(spearmanr(position, items[aspect]).statistic) < 0.08
    bought = tables.interactions["item_id"].value_counts().reindex(items["item_id"], fill_value=0)
    assert abs(spearmanr(position, bought).statistic) < 0.08
    first = tables.interactions.groupby("item_id")["timestamp"].min().reindex(items["item_id"])
    assert abs(spearmanr(position, first, nan_policy="omit").statistic) < 0.08
    users = tables.users
    group = users["hidden_group"].map(GROUPS.index)
    assert abs(spearmanr(np.arange(len(users)), group).statistic) < 0.06


def test_users_explain_by_the_aspect_they_attend_to(tables):
    said = tables.explanations.merge(tables.users, on="user_id").merge(tables.items, on="item_id")
    assert 0.57 < len(said) / len(tables.interactions) < 0.63
    assert not said.duplicated(["user_id", "item_id"]).any()
    bought = tables.interactions.assign(bought=True)
    assert said.merge(bought, on=["user_id", "item_id"], how="left")["bought"].eq(True).all()
    value = [ASPECTS[row.hidden_group][getattr(row, row.hidden_group)].name for row in said.itertuples()]
    assert said["feature"].tolist() == value
    assert all(f" {word} " in f" {text} " for word, text in zip(value, said["explanation"], strict=True))
    assert said["rating"].isin([2, 3, 4, 5]).all() and 0.85 < (said["rating"] >= 4).mean() < 0.95


def test_titles_name_every_value_in_known_words(tables):
    known = set(title_words())
    for row, title in enumerate(tables.items["title"]):
        words = title.lower().split()
        assert set(words) <= known and len(words) <= 14
        for aspect, values in ASPECTS.items():
            ways = [phrase.removeprefix("|").split() for phrase in values[tables.items.at[row, aspect]].words]
            assert any(set(way) <= set(words) for way in ways), (title, aspect)
    assert tables.items["title"].nunique() > 0.95 * len(tables.items)


def test_titles_leave_out_what_is_asked(tables):
    rng = np.random.default_rng(0)
    values = dict.fromkeys(ASPECTS, 0)
    titles = {draw_title(rng, values, frozenset({"colour", "pattern", "setting"})).lower() for _ in range(60)}
    assert all(title.split()[-1] in {"ball", "globe", "sphere"} for title in titles)


@pytest.mark.parametrize("aspect", list(ASPECTS))
def test_every_value_can_be_seen(aspect):
    others = dict.fromkeys(ASPECTS, 1)
    images = [
        draw_image(np.random.default_rng(5), others | {aspect: value}, 48).astype(int)
        for value in range(len(ASPECTS[aspect]))
    ]
    for first in range(len(images)):
        for second in range(first):
            assert (np.abs(images[first] - images[second]).max(axis=2) > 20).mean() > 0.04, (first, second)


def test_image_side_changes_the_pictures_only(tables):
    larger = AspectsSettings(image_side=64)
    again = aspects_tables(larger)
    pd.testing.assert_frame_equal(again.interactions, tables.interactions)
    pd.testing.assert_frame_equal(again.items, tables.items)
    assert product_image(again.items, 0, larger).shape == (64, 64, 3)


@settings(max_examples=25)
@given(
    n_items=st.integers(48, 200),
    n_users=st.integers(1, 60),
    seed=st.integers(0, 2**31),
    noise=st.floats(0, 1),
    second=st.floats(0, 1),
    skew=st.floats(0, 3),
)
def test_any_size_is_complete(n_items, n_users, seed, noise, second, skew):
    chosen = AspectsSettings(
        n_items=n_items, n_users=n_users, seed=seed, noise=noise, second_favourite=second, value_skew=skew
    )
    made = aspects_tables(chosen)
    assert len(made.items) == n_items and len(made.users) == n_users
    assert set(made.interactions["user_id"]) == set(made.users["user_id"])
    assert set(made.interactions["item_id"]) <= set(made.items["item_id"])
    assert not made.interactions.duplicated(["user_id", "item_id"]).any()


def test_a_hundred_thousand_users_are_quick():
    start = time.process_time()
    made = aspects_tables(AspectsSettings(n_users=100_000))
    assert time.process_time() - start < 10
    assert made.interactions["user_id"].nunique() == 100_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_items": 35}, "n_items"),
        ({"n_users": 0}, "n_users"),
        ({"noise": 1.5}, "noise"),
        ({"second_favourite": -0.1}, "second_favourite"),
        ({"max_purchases": 4}, "max_purchases"),
        ({"value_skew": -1.0}, "value_skew"),
        ({"image_side": 8}, "image_side"),
        ({"noise": float("nan")}, "noise"),
    ],
)
def test_impossible_settings_are_refused_by_name(change, message):
    with pytest.raises(PerPEFTError, match=f"{message} is"):
        AspectsSettings(**change)


def test_an_existing_folder_is_never_touched(tmp_path):
    folder = make_aspects(tmp_path / "aspects", SMALL, show_progress=False)
    before = _contents(folder)
    with pytest.raises(PerPEFTError, match="exists already"):
        make_aspects(folder, show_progress=False)
    assert make_aspects(folder, show_progress=False, exist_ok=True) == folder
    assert _contents(folder) == before


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_arguments, **_named):
        raise KeyboardInterrupt

    monkeypatch.setattr("recbole_perpeft.data.aspects.catalogue.product_image", fail)
    with pytest.raises(KeyboardInterrupt):
        make_aspects(tmp_path / "aspects", SMALL, show_progress=False)
    assert list(tmp_path.iterdir()) == []


def test_command_line_makes_what_its_flags_say(tmp_path, capsys):
    flags = [f"--output={tmp_path / 'shop'}", "--name=shop", "--n_items=60", "--n_users=9", "--seed=1", "--noise=0.5"]
    assert main(["aspects", *flags, "--image_side=16"]) == 0
    assert str(tmp_path / "shop") in capsys.readouterr().out
    assert len((tmp_path / "shop" / "shop.user").read_text().splitlines()) == 10
    assert main(["aspects", *flags]) == 2
    assert "exists already" in capsys.readouterr().err
