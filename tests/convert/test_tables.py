"""Cells of tables of others: texts of titles, and ids."""

import json
import math
from datetime import datetime, timezone
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.convert.sources.table import TableColumns, TableSource
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.files.tables import TimeColumn, id_text, table_rows, text_of

NUMBERS = st.integers(-(10**6), 10**6)
SIMPLE = st.one_of(st.none(), st.text("ab ", max_size=4), NUMBERS)


def write(path, titles, column="title"):
    items = [f"i{place}" for place in range(len(titles))]
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"item_id": items, column: titles}), path)
    else:
        rows = zip(items, titles, strict=True)
        lines = [json.dumps({"item_id": item, column: title}) for item, title in rows]
        path.write_text("\n".join(lines), encoding="utf-8")
    return items


def titles_in(path, titles):
    tokens = write(path, titles)
    return list(TableSource(path, items=path).texts(tokens)["title"].values())


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("titles", "found"),
    [
        ([["red", "blue"], ["x"], [], None], ["red blue", "x", "", ""]),
        ([["a", None, "", "b"]], ["a b"]),
        ([1984, 2001, None], ["1984", "2001", ""]),
        ([1.5, math.nan, None], ["1.5", "", ""]),
        ([[1, 2]], ["1 2"]),
        (["1984.0", "nan", " x "], ["1984.0", "nan", " x "]),
    ],
)
def test_titles_have_the_text_of_the_source(tmp_path, suffix, titles, found):
    assert titles_in(tmp_path / f"items.{suffix}", titles) == found


def test_whole_numbers_with_gaps_are_floats_in_parquet_alone(tmp_path):
    pd.DataFrame({"item_id": ["i0", "i1"], "title": [1984, None]}).to_parquet(tmp_path / "items.parquet")
    texts = TableSource(tmp_path / "x.csv", items=tmp_path / "items.parquet").texts(["i0", "i1"])
    assert texts["title"] == {"i0": "1984", "i1": ""}
    assert titles_in(tmp_path / "items.jsonl", [1984.0]) == ["1984.0"]  # as its source says


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("title", [{"en": "Cup"}, [{"en": "Cup"}], True, [["a"]], math.inf])
def test_what_has_no_text_is_refused_with_its_row(tmp_path, suffix, title):
    path = tmp_path / f"items.{suffix}"
    with pytest.raises(PerPEFTError, match=rf"items\.{suffix}, line 2: title is .*; write it as a text"):
        titles_in(path, [None, title])


def test_long_values_are_cut_in_messages(tmp_path):
    with pytest.raises(PerPEFTError) as caught:
        titles_in(tmp_path / "items.jsonl", [{"a": "x" * 9999}])
    assert len(str(caught.value)) < 400


@settings(max_examples=50)
@given(value=st.one_of(SIMPLE, st.lists(SIMPLE, max_size=3)))
def test_simple_values_and_their_lists_lose_nothing(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    parts = value if isinstance(value, list) else [value]
    assert text_of(path, 1, value, "title") == " ".join(str(part) for part in parts if part not in (None, ""))


def test_image_columns_are_texts(tmp_path):
    write(tmp_path / "items.jsonl", ["a.jpg", None, 7, {"url": "x"}], "photo")
    source = TableSource(
        tmp_path / "items.jsonl", tmp_path / "items.jsonl", tmp_path, columns=TableColumns(image="photo")
    )
    assert {token: image.path.name for token, image in source.images(["i0", "i1", "i2"]).items()} == {
        "i0": "a.jpg",
        "i2": "7",
    }
    with pytest.raises(PerPEFTError, match="line 4: photo is {'url': 'x'}"):
        source.images(["i3"])


def test_whole_floats_are_no_ids_in_csv_and_parquet_alike(tmp_path):
    table = pd.DataFrame({"item_id": [1, None]})
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    table.to_parquet(tmp_path / "a.parquet")
    for name in ("a.csv", "a.tsv", "a.parquet"):
        path = tmp_path / name
        line, (value,) = next(table_rows(path, ["item_id"]))
        with pytest.raises(PerPEFTError, match=rf"{name}, line \d: the id 1.0 is a whole number .* astype\('Int64'\)"):
            id_text(path, line, value)
    assert id_text(tmp_path / "a.csv", 1, "1.50") == "1.50"
    assert id_text(tmp_path / "a.csv", 1, "10") == "10"
    assert id_text(tmp_path / "a.jsonl", 1, "1.0") == "1.0"  # a text says what it means


def test_a_damaged_parquet_file_is_told_in_one_line(tmp_path):
    path = tmp_path / "a.parquet"
    pd.DataFrame({"user_id": ["u"] * 99}).to_parquet(path)
    whole, messages = path.read_bytes(), []
    for place in range(4, len(whole) - 8, 7):
        path.write_bytes(whole[:place] + b"\xff" * 3 + whole[place + 3 :])
        try:
            list(table_rows(path, ["user_id"]))
        except PerPEFTError as error:
            messages.append(str(error))
    assert any("damaged after row" in message for message in messages)
    assert not [message for message in messages if "\n" in message or str(path) not in message]


def table(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "name", ["image", "item_id", "user_id", "timestamp", "rating", "Brand: name", "a\tb", "", " "]
)
def test_names_that_no_item_file_can_have_are_refused(name):
    arguments = dict.fromkeys(["items_item_column", "time_column", "rating_column", "image_column", "items", "images"])
    arguments |= {"user_column": "u", "item_column": "i", "title_column": "title", "input": "x.csv"}
    with pytest.raises(PerPEFTError, match="rename it in the table"):
        TableSource.from_arguments(arguments | {"text_columns": ["fine", name]}, False)


def test_a_time_that_the_first_row_lacks_is_not_dropped(tmp_path):
    lines = ['{"user_id": "u", "item_id": "a"}', '{"user_id": "u", "item_id": "b", "timestamp": 1}']
    with pytest.raises(PerPEFTError, match="line 2: has a timestamp, which the first row lacks"):
        list(TableSource(table(tmp_path / "x.jsonl", lines)).events())
    with pytest.raises(PerPEFTError, match="line 2: the time None"):
        list(TableSource(table(tmp_path / "y.jsonl", lines[::-1])).events())
    assert len(list(TableSource(table(tmp_path / "z.jsonl", lines[:1] * 2)).events())[0].users) == 2


def test_columns_and_items_that_are_nowhere_are_told(tmp_path):
    items = table(tmp_path / "items.jsonl", ['{"item_id": "1", "title": "cup", "brand": null}'])
    source = TableSource(tmp_path / "orders.csv", items, columns=TableColumns(texts=("brnd",)))
    with pytest.raises(PerPEFTError, match="no row has 'brnd'"):
        source.texts(["1"])
    with pytest.raises(PerPEFTError, match=r"no item_id is that of an item of .*orders.csv, as '01' is"):
        TableSource(tmp_path / "orders.csv", items).texts(["01"])
    photos = table(tmp_path / "photos.jsonl", ['{"item_id": "1", "photo": "a.jpg"}'])
    source = TableSource(tmp_path / "orders.csv", photos, tmp_path, columns=TableColumns(image="photo"))
    assert source.texts(["1"]) == {"title": {"1": ""}} and source.images(["1"])
    source = TableSource(tmp_path / "orders.csv", items, tmp_path, columns=TableColumns(image="phto"))
    with pytest.raises(PerPEFTError, match="no row has 'phto'"):
        source.images(["1"])


DATES = st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1), timezones=st.just(timezone.utc))


@given(times=st.lists(DATES, min_size=1, max_size=4), digits=st.integers(0, 9))
def test_dates_are_seconds_whatever_form_of_iso_they_have(times, digits):
    column = TimeColumn(Path("x.csv"))
    for line, time in enumerate(times):
        second = f"{time:%Y-%m-%dT%H:%M:%S}" + (f".{time.microsecond:06d}000"[: digits + 1] if digits else "")
        expected = int(time.timestamp() // 1) + (float(f"{second[19:]}0") if digits else 0)
        for zone in ("", "Z", "+00:00", "+0000", "+00", "-00:00"):
            assert column.seconds(line, second + zone) == pytest.approx(expected, abs=2e-6)
        assert column.seconds(line, f"{time:%Y-%m-%d %H:%M:%S}+02:00") == pytest.approx(time.timestamp() // 1 - 7200)
        assert column.seconds(line, time) == pytest.approx(time.timestamp(), abs=2e-6)
        assert column.seconds(line, time.date()) == pytest.approx(time.timestamp() // 86400 * 86400)


@pytest.mark.parametrize("other", ["2024-05-31", datetime(2024, 5, 31)])
def test_numbers_and_dates_are_not_mixed(other):
    column = TimeColumn(Path("x.csv"))
    assert column.seconds(2, "45443") == 45443
    with pytest.raises(PerPEFTError, match="line 3: the time .* is a date, that of line 2 is a number"):
        column.seconds(3, other)
    column = TimeColumn(Path("x.csv"))
    column.seconds(2, other)
    with pytest.raises(PerPEFTError, match="line 3: the time '2024' is a number, that of line 2 is a date"):
        column.seconds(3, "2024")


@pytest.mark.parametrize("value", ["1_000", True, "nan", "x", None, "", math.inf])
def test_what_is_no_time_is_told(value):
    with pytest.raises(PerPEFTError, match="line 2: the time .* is neither a finite number nor a date"):
        TimeColumn(Path("x.csv")).seconds(2, value)


def test_long_cells_are_read(tmp_path):
    path = table(tmp_path / "x.csv", ["user_id,item_id,text", "u,i," + "x" * 200_000])
    assert len(list(TableSource(path).events())[0].users) == 1


def test_times_that_are_no_date_are_told_with_their_row(tmp_path):
    times = pa.array([1, 2**63 - 1], pa.timestamp("ms"))
    pq.write_table(pa.table({"user_id": ["u"] * 2, "item_id": ["a", "b"], "timestamp": times}), tmp_path / "x.parquet")
    with pytest.raises(PerPEFTError, match=r"x\.parquet: damaged after row"):
        list(TableSource(tmp_path / "x.parquet").events())
