"""Reading in blocks: the same lines whatever the blocks, and errors that name file and line."""

import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.core import lines as reading
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.lines import (
    column_place,
    csv_columns,
    csv_rows,
    find_file,
    line_blocks,
    text_lines,
)


@settings(max_examples=60)
@given(
    content=st.binary(max_size=80).filter(lambda data: not data.startswith(b"\xef\xbb\xbf")), size=st.integers(1, 9)
)
def test_blocks_are_whole_lines(tmp_path_factory, content, size):
    path = tmp_path_factory.mktemp("blocks") / "file"
    path.write_bytes(content)
    blocks = list(line_blocks(path, block_bytes=size))
    assert b"".join(block for _, block in blocks) == content
    first = 1
    for number, block in blocks:
        assert number == first
        first += block.count(b"\n")
    assert all(block.endswith(b"\n") for _, block in blocks[:-1])


def test_lines_end_at_line_feeds_only(tmp_path):
    path = tmp_path / "file"
    path.write_bytes("\ufeffa\u2028b\r\nc\x0bd\n\ne".encode())
    assert list(text_lines(path)) == [(1, "a\u2028b\r\n"), (2, "c\x0bd\n"), (3, "\n"), (4, "e")]


def test_gzip_reads_alike_and_a_cut_file_is_an_error(tmp_path):
    lines = [f"line {number}\n" for number in range(5000)]
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress("".join(lines).encode()))
    assert [line for _, line in text_lines(path)] == lines
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(PerPEFTError, match=r"file\.gz, line \d+: cannot be read from here on"):
        list(text_lines(path))
    path.write_bytes(b"no gzip")
    with pytest.raises(PerPEFTError, match=r"file\.gz, line 1"):
        list(text_lines(path))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(PerPEFTError, match="nothing.csv, line 1.*No such file"):
        list(text_lines(tmp_path / "nothing.csv"))


def test_a_line_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"fine\n\xff\xfe\n")
    with pytest.raises(PerPEFTError, match="file, line 2: not UTF-8 at byte 1"):
        list(text_lines(path))


def test_an_endless_line_is_an_error_not_a_full_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 100)
    path = tmp_path / "file"
    path.write_bytes(b"a\n" + b"x" * 1000)
    with pytest.raises(PerPEFTError, match="file, line 2: longer than 100 bytes"):
        list(line_blocks(path, block_bytes=64))


def test_rows_with_quotes_and_line_feeds(tmp_path):
    path = tmp_path / "file.csv"
    path.write_bytes(b'a,b\r\n"x, ""y""","two\nlines"\n\n1,2\n')
    assert list(csv_rows(path)) == [(1, ["a", "b"]), (3, ['x, "y"', "two\nlines"]), (5, ["1", "2"])]


@pytest.mark.parametrize("content", [b'a,b\n1,"2\n', b'a,b\n1,"2"3\n'])
def test_broken_quotes_are_an_error(tmp_path, content):
    path = tmp_path / "file.csv"
    path.write_bytes(content)
    with pytest.raises(PerPEFTError, match=r"file\.csv, line \d: not a row of a table"):
        list(csv_rows(path))


def test_a_row_of_another_length_is_an_error(tmp_path):
    path = tmp_path / "file.csv"
    path.write_bytes(b"a,b\n1,2\n1,2,3\n")
    with pytest.raises(PerPEFTError, match="line 3: 3 cells instead of 2"):
        list(csv_columns(path, lambda header: [1]))


def test_a_missing_column_is_an_error(tmp_path):
    with pytest.raises(PerPEFTError, match="line 1: no column 'c' among a, b"):
        column_place(tmp_path, ["a", "b"], "c")
    with pytest.raises(PerPEFTError, match="two columns 'a'"):
        column_place(tmp_path, ["a", "a"], "a")


def test_find_file_wants_exactly_one(tmp_path):
    with pytest.raises(PerPEFTError, match="found: none"):
        find_file(tmp_path, "*.tsv", "titles")
    (tmp_path / "a.tsv").touch()
    assert find_file(tmp_path, "*.tsv", "titles") == tmp_path / "a.tsv"
    (tmp_path / "b.tsv").touch()
    with pytest.raises(PerPEFTError, match=r"found: a\.tsv, b\.tsv"):
        find_file(tmp_path, "*.tsv", "titles")
    with pytest.raises(PerPEFTError, match="is not a folder"):
        find_file(tmp_path / "c", "*.tsv", "titles")
