"""Ids are checked and come back from the disk; filters equal naive loops."""

from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas._libs.parsers import STR_NA_VALUES

from recbole_perpeft.convert.events import MISSING_WORDS, Events, EventSpool, Log, batched_events
from recbole_perpeft.convert.filters import FilterSettings, among_last, first_of_repeats, in_k_core, of_long_users
from recbole_perpeft.core.errors import PerPEFTError

ROWS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=60)


def log_of(rows, with_times=True):
    users, items, times = (np.array(column) for column in zip(*rows, strict=True))
    return Log(np.arange(len(rows)), users, items, times.astype(float) if with_times else None)


def events_of(users, items, times=None, file="file"):
    times = None if times is None else np.array(times, dtype=float)
    return Events(file, np.arange(2, len(users) + 2), pa.array(users), pa.array(items), times)


def fill(folder, *batches):
    spool = EventSpool(folder)
    return spool, spool.fill(batches)


def test_words_are_those_that_pandas_takes_for_missing():
    assert set(MISSING_WORDS) == STR_NA_VALUES


@settings(max_examples=40)
@given(rows=ROWS, keep=st.randoms(), size=st.integers(1, 20))
def test_names_come_back_for_any_filter(tmp_path_factory, rows, keep, size):
    users, items = [f"u{user}" for user, _, _ in rows], [f"i{item}" for _, item, _ in rows]
    batches = [events_of(users[at : at + size], items[at : at + size]) for at in range(0, len(rows), size)]
    spool, log = fill(tmp_path_factory.mktemp("spool"), *batches)
    mask = np.array([keep.random() < 0.6 for _ in rows])
    mask[keep.randrange(len(rows))] = True
    left = log.kept(mask).renumbered()
    names = spool.names(left)
    assert names["user"].take(left.users).to_pylist() == [user for user, kept in zip(users, mask, strict=True) if kept]
    assert names["item"].take(left.items).to_pylist() == [item for item, kept in zip(items, mask, strict=True) if kept]
    assert len(names["user"]) == len(set(np.array(users)[mask]))


def test_ids_that_share_a_hash_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(pd.util, "hash_array", lambda values, categorize: np.ones(len(values), dtype=np.uint64))
    spool, log = fill(tmp_path, events_of(["a", "b"], ["x", "x"]))
    with pytest.raises(RuntimeError, match="share a 64-bit hash"):
        spool.names(log.renumbered())


@pytest.mark.parametrize("wrong", ["", "NA", "null", "[PAD]", "a\tb", "a\nb", "a\rb", '"a', "a\0"])
@pytest.mark.parametrize("name", ["user", "item"])
def test_ids_that_recbole_would_misread_are_errors_with_their_line(tmp_path, wrong, name):
    ids = {"user": ["u", "u", "u"], "item": ["i", "i", "i"]}
    ids[name] = ["fine", wrong, wrong]
    with pytest.raises(PerPEFTError, match=f"file, line 3: the {name} id"):
        fill(tmp_path, events_of(ids["user"], ids["item"]))


def test_a_missing_id_or_time_is_an_error_with_its_line(tmp_path):
    with pytest.raises(PerPEFTError, match="file, line 3: has no user id"):
        fill(tmp_path, events_of(["u", None], ["i", "i"]))
    with pytest.raises(PerPEFTError, match="file, line 2: has no finite time"):
        fill(tmp_path, events_of(["u"], ["i"], [np.nan]))


def test_no_interactions_and_mixed_columns_are_errors(tmp_path):
    with pytest.raises(PerPEFTError, match="no interactions"):
        fill(tmp_path)
    with pytest.raises(PerPEFTError, match="other: has other columns"):
        fill(tmp_path, events_of(["u"], ["i"]), events_of(["u"], ["i"], [1], file="other"))


def test_batches_keep_all_rows(monkeypatch):
    monkeypatch.setattr("recbole_perpeft.convert.events.BATCH_ROWS", 4)
    rows = [(line, f"u{line}", "i", line / 2, None) for line in range(10)]
    batches = list(batched_events("file", rows))
    assert [len(batch.lines) for batch in batches] == [4, 4, 2]
    assert np.concatenate([batch.times for batch in batches]).tolist() == [line / 2 for line in range(10)]
    assert all(batch.ratings is None for batch in batches)


@settings(max_examples=60)
@given(rows=ROWS, k=st.integers(1, 4))
def test_k_core_equals_removing_one_by_one(rows, k):
    left = list(range(len(rows)))
    while True:
        users, items = Counter(rows[at][0] for at in left), Counter(rows[at][1] for at in left)
        out = next((at for at in left if users[rows[at][0]] < k or items[rows[at][1]] < k), None)
        if out is None:
            break
        left.remove(out)
    assert np.flatnonzero(in_k_core(log_of(rows), k)).tolist() == left


@settings(max_examples=60)
@given(rows=ROWS, n=st.integers(1, 4), with_times=st.booleans())
def test_keep_last_and_min_len_equal_loops(rows, n, with_times):
    log = log_of(rows, with_times)
    of_user = {user: [at for at in range(len(rows)) if rows[at][0] == user] for user, _, _ in rows}
    latest = set()
    for places in of_user.values():
        ordered = sorted(places, key=lambda at: rows[at][2]) if with_times else places
        latest.update(ordered[-n:])
    assert set(np.flatnonzero(among_last(log, n))) == latest
    long = {at for places in of_user.values() if len(places) >= n for at in places}
    assert set(np.flatnonzero(of_long_users(log, n))) == long


@settings(max_examples=60)
@given(rows=ROWS, equal_times_only=st.booleans())
def test_repeats_leave_the_earliest(rows, equal_times_only):
    expected, seen = [], set()
    for at in sorted(range(len(rows)), key=lambda at: rows[at][2]):
        key = rows[at] if equal_times_only else rows[at][:2]
        if key not in seen:
            seen.add(key)
            expected.append(at)
    assert np.flatnonzero(first_of_repeats(log_of(rows), equal_times_only)).tolist() == sorted(expected)


def test_equal_times_need_times():
    with pytest.raises(PerPEFTError, match="this source has none"):
        first_of_repeats(log_of([(0, 0, 0)], with_times=False), True)


def test_filters_apply_in_the_documented_order():
    settings = FilterSettings("drop_items", k_core=2, min_len=3, keep_last=4)
    assert list(settings.steps()) == ["repeats drop_items", "k_core 2", "min_len 3", "keep_last 4"]
    assert not FilterSettings(k_core=1, min_len=1).steps()
    with pytest.raises(PerPEFTError, match="keep_last is -1: it must be a whole number, at least 0"):
        FilterSettings(keep_last=-1)
    with pytest.raises(PerPEFTError, match="repeats"):
        FilterSettings(repeats="some")
