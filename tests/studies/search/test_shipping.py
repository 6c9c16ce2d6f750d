"""Where data that travel are unpacked: a folder that nobody else has put there, and nobody else reads."""

import os
import stat

import pytest

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.studies.search.shipping import private_folder


def test_a_private_folder(tmp_path):
    for _ in range(2):
        folder = private_folder(tmp_path / "new")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        folder.chmod(0o777)


@pytest.mark.parametrize("kind", ["link", "broken link", "file"])
def test_what_is_planted_is_refused(tmp_path, kind):
    other, path = tmp_path / "other", tmp_path / "planted"
    other.mkdir(mode=0o755)
    path.touch() if kind == "file" else path.symlink_to(other if kind == "link" else tmp_path / "nowhere")
    with pytest.raises(PerPEFTError, match="planted is not a folder of this user"):
        private_folder(path)
    assert stat.S_IMODE(other.stat().st_mode) == 0o755 and not list(other.iterdir())


def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    (tmp_path / "planted").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(PerPEFTError, match="planted is not a folder of this user"):
        private_folder(tmp_path / "planted")
