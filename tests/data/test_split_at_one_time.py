"""Splits at one time for all users: parts, targets and what came before each of them, against a loop over rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.protocol import TARGETS
from recbole_perpeft.data.evaluation import evaluation_loader
from recbole_perpeft.runs.run import create_dataset, data_preparation
from support.logs import rows_of

NOW = 1_700_000_000  # Unix seconds, whose float32 neighbours are 128 s apart
ONE, TWO = NOW + 6, [NOW + 6, NOW + 9]


@st.composite
def logs(draw):
    """Rows of four users with up to 7 interactions within 12 seconds, some at the same time; two train rows of one."""
    rows = [("a", "i0", NOW), ("a", "i1", NOW + 1), ("b", "i0", NOW + 12)]
    moments = st.tuples(st.sampled_from("abcd"), st.sampled_from(["i0", "i1", "i2", "i3"]), st.integers(0, 12))
    rows += [(user, item, NOW + second) for user, item, second in draw(st.lists(moments, max_size=18))]
    return draw(st.permutations(rows))


def arguments(border, target):
    return {"split": {"GT": border}, "order": "TO", "target": target}


def parts_of(rows, border):
    """The part of each row of the sorted log."""
    rows = sorted(rows, key=lambda row: row[2])
    borders = border if isinstance(border, list) else [border]
    parts = [sum(time >= each for each in borders) for _, _, time in rows]
    parts = [2 if part == len(borders) else part for part in parts]
    if len(borders) == 1:
        for user in "abcd":
            train = [at for at, row in enumerate(rows) if row[0] == user and parts[at] == 0]
            if len(train) >= 3:
                parts[train[-1]] = 1
    return rows, parts


def expected_rows(rows, border, target, place):
    """(user, items before, targets) of each row of a part; of random targets, all that there may be."""
    rows, parts = parts_of(rows, border)
    found = []
    for user in "abcd":
        own = [at for at, row in enumerate(rows) if row[0] == user]
        inside = [at for at in own[1:] if parts[at] == place]
        if place == 1 and not isinstance(border, list):
            chosen = [[at] for at in inside]
        elif target == "all":
            chosen = [inside] if inside and parts[own[0]] < place else []
        else:
            cut = {"last": slice(-1, None), "first": slice(0, 1)}.get(target, slice(None))
            chosen = [[at] for at in inside[cut]]
        for targets in chosen:
            before = tuple(rows[at][1] for at in own if at < targets[0])
            found.append((user, before, tuple(sorted({rows[at][1] for at in targets}))))
    return found


def found_rows(dataset, loader):
    """What a loader evaluates, with what it masks as what came before."""
    found = []
    for interaction, masked, positive_u, positive_i in loader:
        tokens = {name: dataset.id2token(name, interaction[name].numpy()) for name in ("user_id", "item_id")}
        for row, user in enumerate(tokens["user_id"]):
            before = dataset.id2token("item_id", masked[1][masked[0] == row].numpy())
            targets = dataset.id2token("item_id", positive_i[positive_u == row].numpy())
            found.append((str(user), tuple(map(str, before)), tuple(sorted(map(str, targets)))))
    return found


@pytest.mark.parametrize("model", ["SASRec", "GlobalPEFT", "BPR"])
@given(rows=logs(), target=st.sampled_from(TARGETS), border=st.sampled_from([ONE, TWO]))
@settings(max_examples=20)
def test_rows_and_what_came_before(log_folder, model, rows, target, border):
    log_folder.write(rows)
    config = log_folder.config(model, eval_args=arguments(border, target), MAX_ITEM_LIST_LENGTH=20, mask_history="all")
    dataset = create_dataset(config)
    built = dataset.build()
    ordered, parts = parts_of(rows, border)
    users, items = built[0].phase_history.pairs()
    train = zip(dataset.id2token("user_id", users), dataset.id2token("item_id", items), strict=True)
    assert sorted(train) == sorted(row[:2] for row, part in zip(ordered, parts, strict=True) if part == 0)
    if model != "BPR":
        learnt = rows_of(dataset, built[0])
        assert sorted(learnt) == sorted(all_train_rows(ordered, parts))
    for phase, place in (("valid", 1), ("test", 2)):
        expected = expected_rows(rows, border, target, place)
        found = found_rows(dataset, evaluation_loader(config, built, phase)) if len(built[place]) else []
        if target == "random":
            assert {row[0] for row in found} == {row[0] for row in expected} and set(found) <= set(expected)
            assert place == 1 or len(found) == len({row[0] for row in found})
        else:
            assert sorted(found) == sorted(expected)
        if model != "BPR":  # what a model reads is what is masked
            lists = zip(built[place].inter_feat["item_id_list"], built[place].inter_feat["item_length"], strict=True)
            read = [tuple(map(str, dataset.id2token("item_id", list(items[:length])))) for items, length in lists]
            assert sorted(read) == sorted(row[1] for row in found)


def all_train_rows(ordered, parts):
    for user in "abcd":
        items = [row[1] for row, part in zip(ordered, parts, strict=True) if part == 0 and row[0] == user]
        yield from ((user, tuple(items[:at]), items[at]) for at in range(1, len(items)))


def a_log(log_folder):
    """10 users with an interaction each second; two more begin at the end."""
    rows = [(f"u{user}", f"i{(second * 7 + user) % 9}", NOW + second) for user in range(10) for second in range(20)]
    rows += [("late", f"new{second}", NOW + 20 + second) for second in range(3)] + [("once", "i1", NOW + 20)]
    log_folder.write(rows)


@pytest.mark.parametrize("model", ["SASRec", "GlobalPEFT", "BPR"])
def test_a_share_is_one_of_time_and_a_date_is_of_utc(log_folder, model):
    a_log(log_folder)
    sizes = {}
    for border in (0.5, NOW + 10, "2023-11-14 22:13:30", "2023-11-15T00:13:30+02:00"):
        config = log_folder.config(model, eval_args=arguments(border, "successive"))
        sizes[border] = [len(part.phase_history.items) for part in create_dataset(config).build()]
    assert len({tuple(size) for size in sizes.values()}) == 1 and sizes[0.5] == [90, 10, 104]


@pytest.mark.parametrize("model", ["SASRec", "BPR"])
def test_new_users_and_items_stay(log_folder, model):
    a_log(log_folder)
    config = log_folder.config(model, eval_args=arguments(NOW + 15, "last"))
    dataset = create_dataset(config)
    *_, test = data_preparation(config, dataset)
    (interaction, *_), *_ = test
    found = dict(
        zip(*(dataset.id2token(name, interaction[name].numpy()) for name in ("user_id", "item_id")), strict=True)
    )
    assert found["late"] == "new2" and "once" not in found and len(found) == 11


@pytest.mark.parametrize("model", ["SASRec", "GlobalPEFT", "BPR"])
def test_drawn_candidates_are_none_that_the_user_had(log_folder, model):
    a_log(log_folder)
    for mask, least in (("all", 0), ("keep_target", 1)):
        config = log_folder.config(model, eval_args=arguments(NOW + 18, "first") | {"mode": "uni2"}, mask_history=mask)
        dataset = create_dataset(config)
        *_, test = data_preparation(config, dataset)
        n_lists = 0
        for rows, of_row, lists, targets in test:
            n_lists += len(lists)
            assert len(lists) == len(targets)
            for number, target in zip(lists, targets, strict=True):
                candidates = rows["item_id"][of_row == number]
                assert len(candidates) - 2 == int(target in candidates) >= least
                user = rows["user_id"][of_row == number][0]
                had = test.dataset.row_histories.of_users()
                _, items = had.rows(np.array([int(user)]))
                assert not set(candidates.tolist()) - {int(target)} & set(items.tolist())
        assert n_lists == 11


@pytest.mark.parametrize(
    ("border", "message"),
    [
        (NOW * 2, "no interaction at or after the border"),
        (10, "no interaction before the border"),
        ([0.9, 0.5], "test part begins before the valid part"),
        ("2023-13-01", "has the border '2023-13-01': give a share"),
        (0, "split is .*GT"),
        ([0.1, 0.2, 0.3], "split is .*GT"),
        (True, "split is .*GT"),
    ],
)
def test_borders_that_cannot_be_meant(log_folder, border, message):
    a_log(log_folder)
    with pytest.raises(PerPEFTError, match=message):
        create_dataset(log_folder.config("BPR", eval_args=arguments(border, "last"))).build()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "latest"}, "target is 'latest'; choose one of last"),
        ({"split": {"LS": "test_only"}}, "target last is for a split at one time"),
        ({"order": "RO"}, "split GT is by time: set order to TO"),
        ({"target": "all", "mode": {"test": "uni5"}}, "mode of the test part is uni5: set mode to full"),
    ],
)
def test_parts_of_the_protocol_that_do_not_go_together(log_folder, changes, message):
    with pytest.raises(PerPEFTError, match=message):
        log_folder.config("BPR", eval_args=arguments(0.9, "last") | changes)


def test_a_date_in_a_file_of_settings_is_a_text(log_folder, tmp_path):
    (tmp_path / "one.yaml").write_text("eval_args: {split: {GT: 2023-11-14}}\n")
    assert log_folder.config("BPR", eval_args="{split: {GT: 2023-11-14}}")["eval_args"]["split"] == {
        "GT": "2023-11-14"
    }
