import io

import numpy as np
import pytest
from PIL import Image

from recbole_perpeft.data import images
from recbole_perpeft.data.images import DamagedImageError, decode_image, read_image_file


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
    monkeypatch.setattr(images, "MAX_PIXELS", 299)
    with pytest.raises(DamagedImageError, match="20 x 15 pixels are too many, at most 299"):
        decode_image(data)
    (tmp_path / "a.png").write_bytes(data)
    assert read_image_file(tmp_path / "a.png") == data
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 10)
    with pytest.raises(DamagedImageError, match="bytes are too many, at most 10"):
        read_image_file(tmp_path / "a.png")
