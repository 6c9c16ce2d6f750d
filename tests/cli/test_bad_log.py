"""Logs that cannot be used: one clear error, exit status 2, and nothing half-written left behind."""

import shutil

import pytest

from recbole_perpeft.cli.main import main
from support.shop import sasrec_words


@pytest.mark.parametrize(
    ("header", "parts"),
    [
        (b"user_id:token\titem_id\ttimestamp:float", ("line 1", "'item_id' is not name:type")),
        (b"user_id:token\titem_id:token\ttimestamp:date", ("line 1", "timestamp:date")),
        (b"user_id:token\titem_id:token\ttimestamp:token", ("line 1", "timestamp:float")),
        (b"user_id:float\titem_id:token\ttimestamp:float", ("aspects.inter", "user_id")),
        (b"user_id:token\tproduct:token\ttimestamp:float", ("no column item_id", "product")),
        (b"", ("line 1", "name:type")),
    ],
)
def test_a_broken_header(shop, header, parts):
    shop.edit_line(shop.log, 1, lambda line: header)
    shop.fails(shop.data, *parts)


@pytest.mark.parametrize(
    ("columns", "parts"),
    [
        (["user_id", "item_id", "timestamp", "item_idd"], ("no column item_idd", "Did you mean item_id?")),
        (["user_id"], ("column item_id is not loaded", "load_col")),
        (["user_id", "item_id"], ("no column 'timestamp'", "load_col")),
    ],
)
def test_an_unknown_or_missing_column_in_load_col(shop, columns, parts):
    shop.fails("aspects.inter", *parts, load_col={"inter": columns})


def test_load_col_that_is_no_mapping(shop):
    shop.fails("load_col is 5: it must be a mapping", load_col=5)


def test_a_title_column_that_is_missing(shop):
    shop.edit_line(shop.items, 1, lambda line: b"item_id:token\tname:token_seq")
    shop.fails(shop.items, "line 1", "'title' is missing")


@pytest.mark.parametrize("text", [b"", b"\n", b"user_id:token\titem_id:token\ttimestamp:float\n"])
def test_a_log_without_interactions(shop, text):
    shop.log.write_bytes(text)
    shop.fails(shop.log)


def test_a_filter_that_leaves_no_users(shop):
    shop.fails(shop.data, "filtering", user_inter_num_interval="[100,inf)")


def test_a_user_with_one_interaction(shop):
    shop.edit(shop.log, lambda lines: [*lines, b"LONELY\t" + lines[1].split(b"\t")[1] + b"\t5"])
    shop.fails("aspects.inter", "LONELY", "single interaction", '--user_inter_num_interval="[2,inf)"')


@pytest.mark.parametrize("time", [b"", b"nan", b"inf", b"-inf"])
@pytest.mark.parametrize("model", ["PerPEFT", "SASRec"])
def test_a_time_that_is_not_finite(shop, time, model):
    shop.edit_line(shop.log, 8, lambda line: b"\t".join([*line.split(b"\t")[:2], time]))
    own = {} if model == "PerPEFT" else {"words": sasrec_words(shop)}
    shop.fails(shop.log, "no finite timestamp", "line 8", **own)


@pytest.mark.parametrize(("column", "field"), [(0, "user_id"), (1, "item_id")])
@pytest.mark.parametrize("token", [b"", b"NA"])
def test_a_row_without_user_or_item(shop, column, field, token):
    def change(line):
        cells = line.split(b"\t")
        cells[column] = token
        return b"\t".join(cells)

    shop.edit_line(shop.log, 8, change)
    shop.fails(shop.log, f"no {field}", "line 8")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda line: line.rsplit(b"\t", 1)[0], "2 cell(s) instead of 3"),
        (lambda line: line + b"\t1", "4 cell(s) instead of 3"),
        (
            lambda line: line.rsplit(b"\t", 1)[0] + b"\tyesterday",
            "'yesterday' in the column timestamp is not a number",
        ),
        (lambda line: line + b"\xff\xfe", "not UTF-8 at byte"),
        (lambda line: line + b"\0", "a zero byte"),
    ],
)
def test_a_broken_row(shop, change, problem):
    shop.edit_line(shop.log, 8, change)
    shop.fails(f"{shop.log}, line 8: {problem}")


def test_a_log_in_utf_16(shop):
    shop.log.write_bytes(shop.log.read_text().encode("utf-16"))
    shop.fails(f"{shop.log} is UTF-16", "iconv -f UTF-16 -t UTF-8")


def test_a_half_made_data_set(shop):
    shop.log.unlink()
    shop.fails(shop.log, "is missing", "deleted")


def test_what_a_killed_first_use_leaves_is_in_nobodys_way(shop, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    shutil.rmtree(shop.data)
    with monkeypatch.context() as patch:
        patch.setattr("recbole_perpeft.data.aspects.catalogue.product_image", die)
        assert main(shop.words()) == 130
    assert not shop.data.exists()
    assert not list(shop.data.parent.iterdir())
