"""Where data that travel are unpacked: a folder that nobody else has put there, and nobody else reads."""

import io
import os
import stat
import tarfile

import pytest

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.studies.search.shipping import pack, private_folder, unpack


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


def test_what_links_lead_to_travels_in_their_place(tmp_path):
    photos, folder = tmp_path / "photos", tmp_path / "shop"
    photos.mkdir(), folder.mkdir()
    (photos / "1.jpg").write_bytes(b"a photo")
    (folder / "shop.inter").write_text("a log")
    (folder / "images").symlink_to(photos)
    (folder / "shop.item").symlink_to(folder / "shop.inter")
    os.link(folder / "shop.inter", folder / "again")
    archive = io.BytesIO()
    pack(folder, "shop", archive)
    archive.seek(0)
    unpack(archive, tmp_path / "there")
    found = {path.relative_to(tmp_path / "there").as_posix(): path for path in (tmp_path / "there").rglob("*")}
    assert not [path for path in found.values() if path.is_symlink()]
    texts = {name: path.read_text() for name, path in found.items() if path.is_file()}
    log = dict.fromkeys(("shop/shop.inter", "shop/shop.item", "shop/again"), "a log")
    assert texts == log | {"shop/images/1.jpg": "a photo"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("../out", tarfile.REGTYPE), ("/out", tarfile.REGTYPE), ("link", tarfile.SYMTYPE), ("pipe", tarfile.FIFOTYPE)],
)
def test_what_is_no_file_of_its_folder_is_not_unpacked(tmp_path, name, kind):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as members:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/hostname"
        members.addfile(member)
    archive.seek(0)
    with pytest.raises(PerPEFTError, match="is no file of its folder"):
        unpack(archive, tmp_path / "there")
    assert not list(tmp_path.iterdir())
