"""A row for each data line, with its cells as they are written, or an error that names the line."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.files.atomic_table import TableReader, numbers_in, read_table
from recbole_perpeft.runs.run import create_dataset

HEADER = "user_id:token\titem_id:token\ttimestamp:float"
# What csv readers, or those who split text at other characters than line feeds, take for something else.
TOKEN = st.text("ab\"'\\,# é\x0b\x1c\u2028\ufeff", min_size=1, max_size=5).map(lambda text: f"x{text}")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("table") / "one.inter"


def read(file, content, separator="\t", encoding=None, piece_bytes=2**20):
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(TableReader(file, lambda name: True, separator, encoding, piece_bytes))


@given(
    cells=st.lists(st.tuples(TOKEN, TOKEN, st.floats(allow_nan=False, allow_infinity=False)), min_size=1, max_size=6),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    mark=st.sampled_from(["", "\ufeff"]),
    separator=st.sampled_from(["\t", "|", "::", "§"]),
    empty=st.lists(st.integers(0, 5), max_size=2),
    piece_bytes=st.sampled_from([1, 7, 30, 2**20]),
)
@settings(max_examples=50)
def test_every_data_line_is_a_row(file, cells, end, mark, separator, empty, piece_bytes):
    lines = [separator.join(map(str, row)) for row in cells]
    numbers = list(range(2, 2 + len(lines)))
    for place in sorted(empty):
        if place < len(lines):
            lines.insert(place, "")
            numbers = [number + (number >= place + 2) for number in numbers]
    table = read(
        file, mark + end.join([HEADER.replace("\t", separator), *lines]) + end, separator, piece_bytes=piece_bytes
    )
    assert list(table.rows.itertuples(index=False, name=None)) == cells
    assert table.lines[np.arange(len(cells))].tolist() == numbers


@given(n_rows=st.integers(1, 5), data=st.data())
@settings(max_examples=30)
def test_a_row_with_other_cells_is_named(file, n_rows, data):
    n_cells = data.draw(st.lists(st.integers(1, 5), min_size=n_rows, max_size=n_rows))
    content = "\n".join([HEADER, *("\t".join(["1"] * n) for n in n_cells)])
    wrong = [row for row, n in enumerate(n_cells) if n != 3]
    if not wrong:
        assert len(read(file, content).rows) == n_rows
        return
    more = rf".*\({len(wrong)} such lines\)" if len(wrong) > 1 else ""
    with pytest.raises(PerPEFTError, match=rf"one\.inter, line {wrong[0] + 2}: {n_cells[wrong[0]]} cell\(s\){more}"):
        read(file, content, piece_bytes=data.draw(st.sampled_from([1, 9, 2**20])))


@pytest.mark.parametrize("piece_bytes", [5, 2**20])
@pytest.mark.parametrize("cell", ["yesterday", "1,5", "0x1f", "1_000", '"5"', "12:30", "1e999"])
def test_a_cell_that_is_no_number_is_named(file, cell, piece_bytes):
    with pytest.raises(PerPEFTError) as error:
        read(file, f"{HEADER}\nu\ti\t1\n\nu\ti\t{cell}\nu\ti\t{cell}\n", piece_bytes=piece_bytes)
    assert f"one.inter, line 4: {cell!r} in the column timestamp is not a number (2 such lines)" in str(error.value)


def test_numbers_in_a_cell_that_are_none_are_named(file):
    lines = np.array([2, 5])
    assert [array.tolist() for array in numbers_in(file, "x", [["1", "2.5"], []], lines)] == [[1.0, 2.5], []]
    with pytest.raises(PerPEFTError, match=r"line 5: '3 b' in the column x"):
        numbers_in(file, "x", [["1"], ["3", "b"]], lines)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "cp1252", "shift_jis"])
def test_another_encoding_is_an_error_or_a_setting(file, encoding):
    content = f"{HEADER}\nu\tｱ\t1\n" if encoding == "shift_jis" else f"{HEADER}\nu\tü\t1\n"
    with pytest.raises(PerPEFTError, match=r"one\.inter.*iconv -f .* -t UTF-8"):
        read(file, content.encode(encoding))
    for piece_bytes in (3, 2**20):
        table = read(file, content.encode(encoding), encoding=encoding, piece_bytes=piece_bytes)
        assert table.rows["item_id"].tolist() == [content[-4]]


@pytest.mark.parametrize(("encoding", "problem"), [("ascii", "line 2: not ascii"), ("nonsense", "unknown encoding")])
def test_an_encoding_that_is_wrong(file, encoding, problem):
    with pytest.raises(PerPEFTError, match=problem):
        read(file, f"{HEADER}\nü\ti\t1\n", encoding=encoding)


@pytest.mark.parametrize("model", ["SASRec", "BPR", "GlobalPEFT"])
def test_quotation_marks_swallow_no_rows(log_folder, model):
    items = [f"i{n}" for n in range(20)]
    items[4], items[9] = '"i4', 'i9"'
    log_folder.write([(f"u{n // 5}", item, n) for n, item in enumerate(items)])
    dataset = create_dataset(log_folder.config(model))
    assert len(dataset.inter_feat) == 20
    assert set(dataset.field2id_token["item_id"][1:]) == set(items)


@pytest.mark.parametrize("piece_bytes", [4, 2**20])
@pytest.mark.parametrize(("bad", "problem"), [(b"\xff", "not UTF-8 at byte 3"), (b"\0", "a zero byte")])
def test_the_line_of_a_byte_that_is_no_text_is_named(file, bad, problem, piece_bytes):
    content = f"{HEADER}\nu\ti\t1\nu\t".encode() + bad + b"\t2\nu\ti\t3\n"
    with pytest.raises(PerPEFTError, match=rf"one\.inter, line 3: {problem}"):
        read(file, content, piece_bytes=piece_bytes)
