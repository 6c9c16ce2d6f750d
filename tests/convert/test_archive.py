"""Zip files from outside: members that leave the folder, links, bombs, damage."""

import stat
import zipfile

import pytest

from recbole_perpeft.convert.reading import archive
from recbole_perpeft.convert.reading.archive import ZippedImage, images_of_zip, opened_zip, unpack_member
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.photos.decode import DamagedImageError


def write_zip(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for member, content in members.items():
            file.writestr(member, content)
    return path


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/tmp/out", "a\\..\\..\\out", "C:\\out", "c:/out", ".."])
def test_members_that_leave_the_folder_are_refused(tmp_path, name):
    path = write_zip(tmp_path / "x.zip", {"fine": b"", name: b"out"})
    with pytest.raises(PerPEFTError, match=r"x\.zip: refused, as .* leaves its folder"), opened_zip(path):
        pass


def test_links_are_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.create_system = 3
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = write_zip(tmp_path / "x.zip", {link: "/etc/passwd"})
    with pytest.raises(PerPEFTError, match="'link' is a link"), opened_zip(path):
        pass


def test_bombs_are_refused(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "x.zip", {"bomb": bytes(50 * 2**20)})
    assert path.stat().st_size < 2**17
    with pytest.raises(PerPEFTError, match=r"'bomb' unpacks [\d,]+ bytes to 52,428,800"), opened_zip(path):
        pass
    monkeypatch.setattr(archive, "MAX_MEMBER_BYTES", 100)
    path = write_zip(tmp_path / "y.zip", {"large": bytes(101)}, zipfile.ZIP_STORED)
    with pytest.raises(PerPEFTError, match="unpacks to 101 bytes"), opened_zip(path):
        pass


def test_a_member_that_lies_about_its_size_gives_no_more_than_it_says(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"file": bytes(range(256)) * 8000})
    data = bytearray(path.read_bytes())
    for signature, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.index(signature) + place
        data[at : at + 4] = (100).to_bytes(4, "little")
    path.write_bytes(data)
    with opened_zip(path) as file, pytest.raises(PerPEFTError, match="cannot be unpacked"):
        unpack_member(file, "file", tmp_path / "out")
    assert (tmp_path / "out").stat().st_size <= 100


def test_encrypted_members_are_refused(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"file": b"secret"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(PerPEFTError, match="is encrypted"), opened_zip(path):
        pass


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_damaged_archives_are_errors(tmp_path, content):
    path = tmp_path / "x.zip"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PerPEFTError, match=r"x\.zip: not a zip file that can be read"), opened_zip(path):
        pass


def test_damaged_members_are_errors(tmp_path, make_image):
    path = write_zip(tmp_path / "x.zip", {"a.jpg": make_image()}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[200] ^= 255
    path.write_bytes(data)
    with opened_zip(path) as file, pytest.raises(PerPEFTError, match=r"a\.jpg cannot be unpacked"):
        unpack_member(file, "a.jpg", tmp_path / "out")
    with pytest.raises(DamagedImageError, match="cannot be unpacked"):
        images_of_zip(path, ["a"])["a"].load()


def test_another_archive_of_the_same_name_is_opened_anew(tmp_path, make_image):
    photos = [make_image(seed=seed) for seed in (1, 2)]
    for photo in photos:
        path = write_zip(tmp_path / "new.zip", {"a.jpg": photo}).rename(tmp_path / "x.zip")
        assert images_of_zip(path, ["a"])["a"].load()[0] == photo


def test_a_damaged_lzma_member_is_an_error(tmp_path, make_image):
    path = write_zip(tmp_path / "x.zip", {"a.jpg": make_image()}, zipfile.ZIP_LZMA)
    data = bytearray(path.read_bytes())
    data[60:200] = b"\xff" * 140
    path.write_bytes(data)
    with pytest.raises(DamagedImageError, match="cannot be unpacked"):
        images_of_zip(path, ["a"])["a"].load()


def test_images_by_item_id(tmp_path, make_image):
    data = make_image()
    path = write_zip(tmp_path / "x.zip", {"d/a.jpg": data, "d/b.txt": b"", "e/c.JPEG": data, "d/": b""})
    assert set(images_of_zip(path, [*"abcd"])) == {"a", "c"}
    assert set(images_of_zip(path, [*"abcd"], "d")) == {"a"}
    content, image = images_of_zip(path, ["a"])["a"].load()
    assert content == data and image.mode == "RGB"


def test_huge_members_are_no_images(tmp_path, monkeypatch, make_image):
    path = write_zip(tmp_path / "x.zip", {"a.jpg": make_image()})
    monkeypatch.setattr(archive, "MAX_FILE_BYTES", 10)
    with pytest.raises(DamagedImageError, match="too many bytes"):
        ZippedImage(path, "a.jpg", 0).load()
