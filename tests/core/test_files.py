import os
import posixpath
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.files import checked_name, is_file_name, open_regular, path_inside, read_regular

PARTS = st.text(st.sampled_from("/.\\:a\0\x1bü "), max_size=8)


@settings(max_examples=50)
@given(relative=PARTS)
def test_no_path_from_data_leaves_its_folder(relative):
    folder = Path("/data/shop")
    try:
        path = path_inside(folder, relative, "row 3")
    except PerPEFTError as error:
        assert str(error).startswith("row 3: the path ") and "\x1b" not in str(error)
    else:
        normal = posixpath.normpath(str(path).replace("\\", "/"))
        assert normal == str(folder) or normal.startswith(f"{folder}/")


@pytest.mark.parametrize("relative", ["../secret/x.npy", "/etc/passwd", "a/../../x", "..\\x", "C:\\x", "C:/x", "a\nb"])
def test_paths_that_leave(relative):
    with pytest.raises(PerPEFTError, match="leaves the folder .*shop, or has control characters"):
        path_inside(Path("shop"), relative, "row 3")


def test_names():
    assert [is_file_name(name) for name in ("", ".", "..", "a/b", "a\\b", "a\x07", "toys 2.0", "ü")] == [False] * 6 + [
        True,
        True,
    ]
    assert checked_name("toys", "dataset") == "toys"
    with pytest.raises(PerPEFTError, match=r"^dataset: '\.\./x' cannot be a name"):
        checked_name("../x", "dataset")


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(path)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"x")
    assert read_regular(tmp_path / "link") == b"x"
