"""Photos and titles that cannot be used: one clear error, exit status 2, and nothing half-written left behind."""

import errno
import os
import shutil

import pytest
from PIL import Image


def test_a_missing_image_folder(shop):
    shutil.rmtree(shop.data / "images")
    shop.fails(shop.data / "images", "32 items", "--missing_content=blank")


def test_an_image_folder_that_is_a_file(shop):
    shutil.rmtree(shop.data / "images")
    (shop.data / "images").write_text("not a folder")
    shop.fails(shop.data / "images", "folders of images are missing", "--missing_content=blank")


def test_an_image_folder_that_may_not_be_listed(shop, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("recbole_perpeft.data.content.os.scandir", refuse)
    shop.fails(shop.data / "images", "Permission denied")


def truncated_jpeg(png):
    jpeg = png.with_suffix(".jpg")
    Image.open(png).convert("RGB").save(jpeg)
    jpeg.write_bytes(jpeg.read_bytes()[:-200])
    png.unlink()


def text_named_jpg(png):
    png.with_suffix(".jpg").write_text("this is no image")
    png.unlink()


def unreadable(png):
    png.unlink()
    png.symlink_to("/proc/self/mem")


@pytest.mark.parametrize(
    ("spoil", "suffix", "reason"),
    [
        (truncated_jpeg, "jpg", "truncated or damaged"),
        (text_named_jpg, "jpg", "not an image"),
        (lambda png: png.write_bytes(b""), "png", "the file is empty"),
        (unreadable, "png", "cannot be read"),
    ],
)
def test_an_image_that_cannot_be_used(shop, spoil, suffix, reason):
    item = shop.item_of_line(5)
    image = shop.data / "images" / f"{item}.png"
    good = image.read_bytes()
    spoil(image)
    message = shop.fails(item, f"images/{item}.{suffix}", reason, "--missing_content=blank")
    assert shop.fails() == message, "what was processed is not taken for good by the next run"
    (shop.data / "images" / f"{item}.{suffix}").unlink()
    image.write_bytes(good)
    assert shop.run().is_dir()


def test_an_image_path_that_leaves_the_folder(shop):
    item = shop.item_of_line(2)
    for path in (b"../../../secret.png", b"/etc/passwd", b"images/../../x.png"):
        shop.edit(shop.items, lambda lines: [line.split(b"\timage")[0] for line in lines])

        def with_image(lines, path=path):
            return [lines[0] + b"\timage:token", lines[1] + b"\t" + path, *(line + b"\t" for line in lines[2:])]

        original = shop.items.read_bytes()
        shop.edit(shop.items, with_image)
        shop.fails(item, path.decode(), "leave the folder")
        shop.items.write_bytes(original)


def test_an_item_id_that_is_a_path_reads_nothing_outside(shop):
    item = shop.item_of_line(2)
    for file in (shop.items, shop.log):
        file.write_text(file.read_text().replace(item, f"../{item}"))
    (shop.data / "images" / f"{item}.png").rename(shop.data / f"{item}.png")
    shop.fails(f"'../{item}'", "items have no image")


def test_an_empty_title(shop):
    shop.edit_line(shop.items, 4, lambda line: line.split(b"\t")[0] + b"\t ")
    shop.fails(shop.items, "titles are empty", shop.item_of_line(4), "--missing_content=blank")


def test_a_title_that_is_not_utf8(shop):
    shop.edit_line(shop.items, 4, lambda line: line + b"\xff\xfe")
    shop.fails(shop.items, "not UTF-8", "line 4")


def test_a_duplicate_item(shop):
    shop.edit(shop.items, lambda lines: [*lines, lines[3]])
    shop.fails(shop.items, shop.item_of_line(4), "lines 4 and 34", "Mend the data")


def test_an_item_without_a_line(shop):
    item = shop.item_of_line(4)
    shop.edit(shop.items, lambda lines: lines[:3] + lines[4:])
    shop.fails(shop.items, item, "not in the item file")
