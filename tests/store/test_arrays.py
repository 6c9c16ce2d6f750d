import io
import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.store.arrays import map_array, read_array

READERS = [read_array, map_array]
ARRAYS = [
    np.arange(6, dtype="<f4").reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=">f8").reshape(2, 3)),
    np.zeros((0, 4), dtype=np.float16),
    np.array(3),
    np.array([True, False]),
]


def file_of(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def with_header(text, rest=b"", version=1):
    header = text.encode()
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + rest


def header_of(descr="'<f4'", shape="(2,)"):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n"


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("array", ARRAYS)
def test_whole_arrays_are_read(read, array, tmp_path):
    np.save(tmp_path / "a.npy", array)
    found = read(tmp_path / "a.npy")
    assert found.dtype == array.dtype and np.array_equal(found, array)


BAD = {
    "11 GB": (with_header(header_of(shape="(3000000000,)")), "should have 12,000,000"),
    "3.6 TiB": (with_header(header_of(shape="(1000000, 1000000)"), bytes(100)), "should have 4,000,000,000"),
    "a huge number": (with_header(header_of(shape=f"({'9' * 30},)"), bytes(100)), "should have"),
    "negative": (with_header(header_of(shape="(-2,)"), bytes(8)), "impossible"),
    "True": (with_header(header_of(shape="(True, 2)"), bytes(8)), "impossible"),
    "no end": (with_header("{'descr': ("), "header is damaged"),
    "nested": (with_header("(" * 5000), "header is damaged"),
    "a long header": (with_header(header_of() + " " * 20_000, bytes(8)), "header has 20"),
    "a header of 4 GB": (b"\x93NUMPY\2\0\xff\xff\xff\xff" + bytes(50), "header has 4,294,967,295 bytes"),
    "objects": (with_header(header_of("'|O'"), bytes(16)), "holds object, not numbers"),
    "columns": (with_header(header_of("[('a', '<f4')]"), bytes(8)), "not numbers"),
    "texts": (file_of(np.array(["a", "b"])), "not numbers"),
    "nothing": (with_header(header_of("'|V0'")), "not numbers"),
    "a pickle": (file_of(np.array([{}]), allow_pickle=True), "holds object"),
    "cut off": (file_of(ARRAYS[0])[:-1], "should have 152 bytes for float32 \\(2, 3\\), and has 151"),
    "too long": (file_of(ARRAYS[0]) * 2, "should have 152"),
    "a zip file": (b"PK\3\4" + bytes(100), "no .npy file"),
    "empty": (b"", "no .npy file"),
    "another version": (b"\x93NUMPY\x07\0" + bytes(100), "no .npy file"),
}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", BAD)
def test_other_files_are_refused_before_memory_is_taken(read, name, tmp_path):
    data, message = BAD[name]
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.npy")


@pytest.mark.parametrize("read", READERS)
def test_pipes_and_devices_are_refused(read, tmp_path):
    os.mkfifo(tmp_path / "a.npy")
    for path in (tmp_path / "a.npy", "/dev/zero"):
        with pytest.raises(OSError, match="not a regular file"):
            read(path)


@settings(max_examples=50)
@given(place=st.integers(0, 151), value=st.integers(0, 255))
def test_damaged_headers_give_one_error_or_an_array(tmp_path_factory, place, value):
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    data = bytearray(file_of(ARRAYS[0]))
    data[place] = value
    path.write_bytes(data)
    try:
        assert read_array(path).nbytes == 24
    except ValueError as error:
        assert str(error)
