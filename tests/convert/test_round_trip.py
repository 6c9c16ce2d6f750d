"""What RecBole and the reader of titles read back equals what went in."""

import csv
import json
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from recbole.data.dataset import Dataset, SequentialDataset

from recbole_perpeft.convert.atomic import plain_text
from recbole_perpeft.convert.conversion import ConversionSettings, convert
from recbole_perpeft.convert.events import MISSING_WORDS
from recbole_perpeft.convert.filters import FilterSettings
from recbole_perpeft.convert.sources.table import TableColumns, TableSource
from recbole_perpeft.data.content import ItemContent
from recbole_perpeft.runs.config import Config

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
# What is hard about ids and titles, put together at random.
PIECES = st.lists(
    st.sampled_from(
        ["0", "01", "1.0", "1e3", "é", "日本", "😀", "'", '"', " ", "&quot;", "&#39;", "\\", "\\n", ",", ";", "|", ":"]
        + [
            "\u2028",
            "\x0b",
            "\x0c",
            "\x1c",
            "\x85",
            "\xa0",
            "\ufeff",
            "#",
            "NA",
            "nan",
            "a",
            "Z",
            "/",
            "..",
            "%",
            "\t",
        ]
        + ["\n", "\r\n", "\r", "''", '""', "\u202e", "e\u0301", "\0"]
    ),
    max_size=5,
).map("".join)
TITLE = st.one_of(TEXT, PIECES)


def is_id(text):
    plain = not any(character in text for character in "\t\r\n\0") and not text.startswith('"')
    is_float = re.fullmatch(r"-?[0-9]+\.0+", text)
    return plain and not is_float and text not in MISSING_WORDS and text != "[PAD]"


ID = st.one_of(TEXT, PIECES, st.integers(-5, 500).map(str)).filter(is_id)
TIME = st.one_of(st.integers(0, 2**41), st.integers(0, 2**41).map(lambda milliseconds: milliseconds / 1000))
# Few different users, items and times: events and times repeat.
LOG = st.tuples(
    st.lists(ID, min_size=1, max_size=4),
    st.dictionaries(ID, TITLE, min_size=1, max_size=5),
    st.lists(TIME, min_size=1),
).flatmap(
    lambda parts: st.tuples(
        st.just(parts[1]),
        st.lists(
            st.tuples(st.sampled_from(parts[0]), st.sampled_from(list(parts[1])), st.sampled_from(parts[2])),
            min_size=1,
            max_size=25,
        ),
    )
)


def write_csv(folder, titles, rows):
    for name, table in (
        ("log.csv", [("user_id", "item_id", "timestamp"), *rows]),
        ("items.csv", [("item_id", "title"), *titles.items()]),
    ):
        with open(folder / name, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(table)
    return folder / "log.csv", folder / "items.csv"


def write_jsonl(folder, titles, rows):
    names = ("user_id", "item_id", "timestamp")
    log = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    items = [json.dumps({"item_id": token, "title": title}, ensure_ascii=False) for token, title in titles.items()]
    (folder / "log.jsonl").write_text("\n".join(log), encoding="utf-8")
    (folder / "items.jsonl").write_text("\n".join(items) + "\n", encoding="utf-8", newline="\n")
    return folder / "log.jsonl", folder / "items.jsonl"


def write_parquet(folder, titles, rows):
    users, items, times = zip(*rows, strict=True)
    times = [float(time) for time in times]
    pq.write_table(pa.table({"user_id": users, "item_id": items, "timestamp": times}), folder / "log.parquet")
    pq.write_table(pa.table({"item_id": list(titles), "title": list(titles.values())}), folder / "items.parquet")
    return folder / "log.parquet", folder / "items.parquet"


def converted(folder, paths, **settings):
    source = TableSource(*paths)
    convert(source, folder / "set", ConversionSettings(FilterSettings(), show_progress=False, **settings))
    return folder / "set"


def read_by_recbole(folder):
    """Users, items and times as RecBole reads them, in the order of the file."""
    config = Config(
        model="SASRec",
        dataset=folder.name,
        config_dict={"data_path": str(folder.parent), "load_col": {"inter": ["user_id", "item_id", "timestamp"]}},
    )
    dataset = Dataset(config)
    log = dataset.inter_feat
    users, items = (
        dataset.id2token(field, np.asarray(log[field])).tolist() for field in (dataset.uid_field, dataset.iid_field)
    )
    return list(zip(users, items, np.asarray(log["timestamp"]).tolist(), strict=True))


def expected_order(rows):
    """By user in the order of appearance, then time; equal times keep their order."""
    first = {user: at for at, (user, _, _) in reversed(list(enumerate(rows)))}
    return sorted(((user, item, float(time)) for user, item, time in rows), key=lambda row: (first[row[0]], row[2]))


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(log=LOG, write=st.sampled_from([write_csv, write_jsonl, write_parquet]))
@example(log=({"1": "a", "01": 'b "c"', "1.1": '"d'}, [("1", "01", 5), ("1", "1", 5), ("1", "1", 5)]), write=write_csv)
def test_recbole_reads_what_went_in(tmp_path_factory, log, write):
    titles, rows = log
    if write is write_csv:  # RecBole reads text the way this does
        titles = {token: title.replace("\0", "") for token, title in titles.items()}
    folder = tmp_path_factory.mktemp("round")
    output = converted(folder, write(folder, titles, rows))
    read, expected = read_by_recbole(output), expected_order(rows)
    assert [row[:2] for row in read] == [row[:2] for row in expected]
    # pandas reads a decimal number up to its last bit.
    np.testing.assert_allclose([row[2] for row in read], [row[2] for row in expected], rtol=1e-15)
    used = sorted({item for _, item, _ in rows})
    content = ItemContent.load(output, "set", used, missing_content="blank")
    assert content.tokens == used
    assert content.titles == [plain_text(titles[token]) for token in used]


@settings(max_examples=200)
@given(title=TITLE)
def test_a_title_changes_only_where_it_must(title):
    plain = plain_text(title)
    assert not any(character in plain for character in "\t\r\n\0") and not plain.startswith('"')
    assert plain == plain.strip()
    if not any(character in title for character in "\t\r\n\0"):
        same = title.strip()
        assert plain == (f"''{same[1:]}" if same.startswith('"') else same)


@pytest.mark.parametrize(
    ("title", "plain"),
    [
        ("a\tb\r\nc", "a b c"),
        ('"A" and "B"', '\'\'A" and "B"'),
        ("6&quot; &amp; more", "6&quot; &amp; more"),
        ("\ud83d half", "\ufffd half"),
        (" \n ", ""),
    ],
)
def test_plain_titles(title, plain):
    assert plain_text(title) == plain


def test_entities_become_characters_before_quotes_are_looked_at():
    assert plain_text("&quot;A&quot; &amp;&#9;B", unescape=True) == "''A\" & B"


def test_recbole_reads_titles_too(tmp_path):
    titles = {"1": '"A" big', "2": "6&quot; wide  pipe", "3": "NA", "4": 'say "hi"', "5": "it's"}
    converted(tmp_path, write_csv(tmp_path, titles, [("u", token, 1) for token in titles]))
    config = Config(
        model="SASRec",
        dataset="set",
        config_dict={"data_path": str(tmp_path), "load_col": {"inter": "*", "item": ["item_id", "title"]}},
    )
    dataset = Dataset(config)
    words = dataset.field2id_token["title"]
    read = {
        dataset.id2token("item_id", int(token)): [words[word] for word in title]
        for token, title in zip(dataset.item_feat["item_id"], dataset.item_feat["title"], strict=True)
        if int(token)
    }
    # RecBole, not the reader of titles, takes the word NA for an empty cell.
    assert {token: [word for word in title if word] for token, title in read.items()} == {
        token: [] if title == "NA" else plain_text(title).split() for token, title in titles.items()
    }


def test_sequences_keep_the_order_of_equal_times_and_repeats(tmp_path):
    items = ["c", "a", "a", "b", "d", "a", "e"]
    rows = [("u", item, 1_588_687_728_000 + place // 3) for place, item in enumerate(items)]
    others = [(f"v{user}", item, 5) for user in range(3) for item in "abcde"]
    log, _ = write_csv(tmp_path, {"a": "A"}, [*rows[:3], *others, *rows[3:]])
    output = converted(tmp_path, (log,))
    config = Config(model="SASRec", dataset="set", config_dict={"data_path": str(output.parent)})
    dataset = SequentialDataset(config)
    _, _, test = dataset.build()
    user = dataset.token2id("user_id", "u")
    row = int(np.flatnonzero(np.asarray(test.inter_feat["user_id"]) == user)[0])
    history = test.inter_feat["item_id_list"][row][: int(test.inter_feat["item_length"][row])]
    assert [
        *dataset.id2token("item_id", history.numpy()),
        dataset.id2token("item_id", test.inter_feat["item_id"][row]),
    ] == items


def test_ids_and_dates_of_all_kinds(tmp_path):
    log = tmp_path / "log.jsonl"
    rows = [
        {"user_id": 7, "item_id": "07", "timestamp": "1970-01-01T00:00:03.0"},
        {"user_id": "07", "item_id": 7, "timestamp": "1970-01-01T00:00:02Z"},
        {"user_id": 7, "item_id": "x", "timestamp": "1970-01-01T02:00:01+02:00"},
        {"user_id": 7, "item_id": "y", "timestamp": "1970-01-01"},
    ]
    log.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    output = converted(tmp_path, (log,))
    assert read_by_recbole(output) == [("7", "y", 0), ("7", "x", 1), ("7", "07", 3), ("07", "7", 2)]


def test_parquet_of_pandas_with_times_and_whole_numbers(tmp_path):
    table = pd.DataFrame(
        {"u": [2, 1], "i": ["b", "a"], "t": pd.to_datetime(["2024-05-31 18:00:00.5", "2024-06-01 00:00:00.0"])}
    )
    table.to_parquet(tmp_path / "log.parquet")
    source = TableSource(tmp_path / "log.parquet", columns=TableColumns("u", "i", "t"))
    convert(source, tmp_path / "set", ConversionSettings(FilterSettings(), show_progress=False))
    assert read_by_recbole(tmp_path / "set") == [("2", "b", 1717178400.5), ("1", "a", 1717200000.0)]
