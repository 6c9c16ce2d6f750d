"""Images: verified, as they are where possible, resumed after a kill."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from recbole_perpeft.convert.images import JOURNAL, ImageWriter, convert_images, file_stem
from recbole_perpeft.convert.reading.image_files import ImageFile, images_of_folder


def write_images(folder, contents):
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def opened(path):
    """Format, size and pixels of an image file."""
    with Image.open(path) as image:
        return image.format, image.size, np.asarray(image).astype(int)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != JOURNAL)


def bomb():
    """A PNG of a few hundred bytes that claims 60,000 x 60,000 pixels."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def test_small_images_stay_as_they_are_and_are_linked(tmp_path, make_image):
    source = write_images(
        tmp_path / "in",
        {"a.jpg": make_image(), "b.png": make_image(kind="PNG"), "c.webp": make_image(kind="WEBP")},
    )
    results = convert_images(images_of_folder(source, ["a", "b", "c"]), tmp_path / "out", max_side=224)
    for result, name in zip(results, ["a.jpg", "b.png", "c.webp"], strict=True):
        assert result.file == name and not result.problem
        assert (tmp_path / "out" / name).samefile(source / name)


def test_the_suffix_follows_the_content(tmp_path, make_image):
    source = write_images(
        tmp_path / "in", {"a.jpg": make_image(kind="PNG"), "b.png": make_image(kind="BMP"), "c.jpg": make_image()}
    )
    convert_images(images_of_folder(source, ["a", "b", "c"]), tmp_path / "out")
    assert names_in(tmp_path / "out") == ["a.png", "b.jpg", "c.jpg"]
    assert opened(tmp_path / "out" / "b.jpg")[0] == "JPEG"


def test_large_images_become_smaller(tmp_path, make_image):
    source = write_images(tmp_path / "in", {"a.png": make_image(100, kind="PNG")})
    convert_images(images_of_folder(source, ["a"]), tmp_path / "out", max_side=52)
    assert opened(tmp_path / "out" / "a.jpg")[:2] == ("JPEG", (52, 50))
    assert opened(source / "a.png")[1] == (104, 100)


def test_without_links_files_are_copied(tmp_path, make_image, monkeypatch):
    def refuse(*_):
        raise OSError

    monkeypatch.setattr(os, "link", refuse)
    source = write_images(tmp_path / "in", {"a.jpg": make_image()})
    convert_images(images_of_folder(source, ["a"]), tmp_path / "out")
    assert (tmp_path / "out" / "a.jpg").read_bytes() == make_image()
    assert not (tmp_path / "out" / "a.jpg").samefile(source / "a.jpg")


def test_a_symbolic_link_becomes_the_file(tmp_path, make_image):
    source = write_images(tmp_path / "in", {"real": make_image()})
    (source / "a.jpg").symlink_to("real")
    convert_images(images_of_folder(source, ["a"]), tmp_path / "out")
    assert not (tmp_path / "out" / "a.jpg").is_symlink()
    assert (tmp_path / "out" / "a.jpg").read_bytes() == make_image()


@pytest.mark.parametrize("workers", [1, 2])
def test_damaged_images_are_told_and_left_out(tmp_path, make_image, workers):
    contents = {"cut.jpg": make_image(60)[:900], "empty.png": b"", "text.jpg": b"hello", "bomb.png": bomb()}
    source = write_images(tmp_path / "in", {**contents, "fine.jpg": make_image()})
    tokens = ["cut", "empty", "text", "bomb", "fine", "gone"]
    references = images_of_folder(source, tokens) | {"gone": ImageFile(source / "gone.jpg")}
    results = {result.token: result for result in convert_images(references, tmp_path / "out", n_workers=workers)}
    assert names_in(tmp_path / "out") == ["fine.jpg"]
    assert all(results[token].problem and not results[token].file for token in tokens if token != "fine")
    assert "pixels" in results["bomb"].problem


def test_ids_that_are_no_file_names(tmp_path, make_image):
    tokens = ["../up", "a/b", "..", ".", "é", "x" * 400, "a.b", "con ", "%2F", "/", "~", "-rf", ".hidden"]
    stems = [file_stem(token) for token in tokens]
    assert len(set(stems)) == len(tokens)
    assert all("/" not in stem and not stem.startswith((".", "-rf/")) and len(stem) < 200 for stem in stems)
    source = write_images(tmp_path / "in", {"x.jpg": make_image()})
    convert_images(dict.fromkeys(tokens, ImageFile(source / "x.jpg")), tmp_path / "out")
    assert names_in(tmp_path / "out") == sorted(f"{stem}.jpg" for stem in stems)


def test_a_second_run_does_only_what_is_missing_or_has_changed(tmp_path, make_image, monkeypatch):
    contents = {f"{name}.png": make_image(seed=seed, kind="BMP") for seed, name in enumerate("abc")}
    source = write_images(tmp_path / "in", contents)
    references = images_of_folder(source, ["a", "b", "c"])
    first = convert_images(references, tmp_path / "out")
    (tmp_path / "out" / "a.jpg").unlink()
    (source / "b.png").write_bytes(make_image(30, seed=9, kind="BMP"))
    (tmp_path / "out" / "half.jpg.draft").touch()
    loaded = []
    load = ImageFile.load
    monkeypatch.setattr(ImageFile, "load", lambda self, limits: (loaded.append(self.path.stem), load(self))[1])
    second = convert_images(references, tmp_path / "out")
    assert loaded == ["a", "b"]
    assert second[0] == first[0] and second[1] != first[1] and second[2] == first[2]
    assert names_in(tmp_path / "out") == ["a.jpg", "b.jpg", "c.jpg"]
    convert_images(references, tmp_path / "out", max_side=16)
    assert loaded == ["a", "b", "a", "b", "c"]


def test_a_cut_journal_starts_anew(tmp_path, make_image):
    source = write_images(tmp_path / "in", {"a.jpg": make_image()})
    references = images_of_folder(source, ["a"])
    convert_images(references, tmp_path / "out")
    journal = tmp_path / "out" / JOURNAL
    journal.write_text(journal.read_text()[:-10])
    assert convert_images(references, tmp_path / "out")[0].file == "a.jpg"
    assert len([json.loads(line) for line in journal.read_text().splitlines()]) == 2


KILLED = """
import sys, time
from pathlib import Path
from recbole_perpeft.convert.reading.image_files import ImageFile
from recbole_perpeft.convert.conversion import ConversionSettings, convert
from recbole_perpeft.convert.filters import FilterSettings
from recbole_perpeft.convert.sources.table import TableSource
from recbole_perpeft.convert import images
images.CHUNK_IMAGES = 1
load = ImageFile.load
def slow(self, limits):
    time.sleep(0.05)
    return load(self)
ImageFile.load = slow
folder = Path(sys.argv[1])
source = TableSource(folder / "log.csv", folder / "items.csv", folder / "in")
convert(source, folder / "set", ConversionSettings(FilterSettings(), workers=1, show_progress=False))
"""


def test_a_killed_conversion_goes_on_and_ends_the_same(tmp_path, make_image, make_csv, files_below, run):
    tokens = [f"i{number}" for number in range(40)]
    source = write_images(tmp_path / "in", {f"{token}.jpg": make_image(seed=at) for at, token in enumerate(tokens)})
    make_csv(tmp_path / "log.csv", ["user_id", "item_id"], [("u", token) for token in tokens])
    make_csv(tmp_path / "items.csv", ["item_id", "title"], [(token, f"title {token}") for token in tokens])
    journal = tmp_path / ".set.draft" / ".images" / JOURNAL
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
    deadline = time.monotonic() + 60
    while not (journal.is_file() and journal.read_text().count("\n") > 5) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    n_done = journal.read_text().count("\n") - 1
    assert 5 <= n_done < 40 and not (tmp_path / "set").exists()
    done = {path.name: path.stat().st_ctime_ns for path in journal.parent.glob("*.jpg")}

    from recbole_perpeft.convert.conversion import ConversionSettings, convert
    from recbole_perpeft.convert.filters import FilterSettings
    from recbole_perpeft.convert.sources.table import TableSource

    table = TableSource(tmp_path / "log.csv", tmp_path / "items.csv", source)
    convert(table, tmp_path / "set", ConversionSettings(FilterSettings(), show_progress=False))
    assert sum((tmp_path / "set" / "images" / name).is_file() for name in done) >= n_done
    folder, _ = run(TableSource(tmp_path / "log.csv", tmp_path / "items.csv", source))
    assert files_below(tmp_path / "set") == files_below(folder)
    assert not (tmp_path / ".set.draft").exists()


def test_a_leftover_draft_does_not_lead_to_another_file(tmp_path, make_image):
    source = write_images(tmp_path / "in", {"a.jpg": make_image(kind="BMP"), "other.jpg": make_image(seed=1)})
    (tmp_path / "out").mkdir()
    os.link(source / "other.jpg", tmp_path / "out" / ".a.jpg.draft")
    ImageWriter(tmp_path / "out", None).write("a", ImageFile(source / "a.jpg"))
    assert (source / "other.jpg").read_bytes() == make_image(seed=1)
    assert names_in(tmp_path / "out") == ["a.jpg"]
