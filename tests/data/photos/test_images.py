import io
import os
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from recbole_perpeft.data.photos import decode, images
from recbole_perpeft.data.photos.decode import DamagedImageError, decode_image
from recbole_perpeft.data.photos.images import choose_images, is_no_file_name, read_image_file


def encoded(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_modes_of_images(mode):
    source = Image.new("L", (20, 15), 255)
    image = Image.new(mode, (20, 15), 65535) if mode == "I;16" else source.convert(mode)
    decoded = decode_image(encoded(image, format="JPEG" if mode == "CMYK" else "PNG"))
    assert decoded.mode == "RGB" and (np.asarray(decoded) >= 254).all()


def test_images_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.zeros((15, 20, 3), dtype=np.uint8)
    values[:, :10] = 255  # bright on the left, which orientation 6 turns to the top
    pixels = np.asarray(decode_image(encoded(Image.fromarray(values), format="PNG", exif=exif)))
    assert pixels.shape == (20, 15, 3) and (pixels[0] == 255).all() and (pixels[-1] == 0).all()


def test_too_many_pixels_and_bytes(tmp_path, monkeypatch):
    data = encoded(Image.new("RGB", (20, 15)), format="PNG")
    monkeypatch.setattr(decode, "MAX_PIXELS", 299)
    with pytest.raises(DamagedImageError, match="20 x 15 pixels are too many, at most 299"):
        decode_image(data)
    (tmp_path / "a.png").write_bytes(data)
    assert read_image_file(tmp_path / "a.png") == data
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 10)
    with pytest.raises(DamagedImageError, match="bytes are too many, at most 10"):
        read_image_file(tmp_path / "a.png")


def test_files_are_found_whatever_their_suffix():
    names = ["a.JFIF", "b.jpe", "c.gif", "d.avif", "e.tif", "f.tiff", "g", "h.x", "i.bmp", "notes.txt", "j.jpg"]
    tokens = ["a", "b", "c", "d", "e", "f", "g", "h.x", "h", "i", "j.jpg", "none"]
    chosen = choose_images(names, tokens)
    assert chosen == dict(zip("abcdefgi", [*names[:7], "i.bmp"], strict=True)) | {"h.x": "h.x", "j.jpg": "j.jpg"}


def test_a_suffix_counts_before_none(caplog):
    assert choose_images(["a", "a.gif", "a.webp", "b", "c.png"], ["a", "b", "c"])["a"] == "a.webp"
    assert "1 items have several images, for instance 'a'; a.webp is used" in caplog.text


NAMES = st.text(st.sampled_from("aéüがÅ\u0301\u0308.-"), min_size=1, max_size=6)


@settings(max_examples=50)
@given(token=NAMES, form=st.sampled_from(["NFC", "NFD"]), suffix=st.sampled_from(["", ".jpg", ".TIF"]))
def test_names_are_compared_in_one_form_of_unicode(token, form, suffix):
    name = unicodedata.normalize(form, token) + suffix
    assert choose_images([name, "other.jpg"], [token]) == {token: name}


def test_ids_that_shops_rename():
    assert [is_no_file_name(token) for token in ("a/b", "a:b", "a?", "a.b", "ü-1 x")] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_pipes_and_devices_are_no_photos(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    for path in (tmp_path / "a.jpg", "/dev/zero"):
        with pytest.raises(DamagedImageError, match="not a regular file"):
            read_image_file(path)
