import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from recbole_perpeft.core.digest import row_digests
from recbole_perpeft.core.run_settings import PhotoLimits
from recbole_perpeft.data.photos import decode
from recbole_perpeft.data.photos.decode import DamagedImageError, decode_image, image_digest

SIZE = (20, 15)
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")


def encoded(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def half_transparent(mode):
    """Left half red or dark and opaque, right half black and fully transparent."""
    values = np.zeros((*SIZE[::-1], 4), dtype=np.uint8)
    values[:, :10] = (200, 0, 0, 255)
    return Image.fromarray(values).convert(mode)


def palette_image():
    image = half_transparent("RGBA").convert("RGB").quantize(4)
    transparent = image.getpixel((19, 0))
    return encoded(image, format="PNG", transparency=transparent)


TRANSPARENT = {
    "RGBA.png": lambda: encoded(half_transparent("RGBA"), format="PNG"),
    "LA.png": lambda: encoded(half_transparent("LA"), format="PNG"),
    "palette.png": palette_image,
    "RGB.png": lambda: encoded(half_transparent("RGB"), format="PNG", transparency=(0, 0, 0)),
    "L.png": lambda: encoded(half_transparent("RGB").convert("L"), format="PNG", transparency=0),
    "I;16.png": lambda: encoded(grey_of_16_bits([60 << 8] * 10 + [0] * 10), format="PNG", transparency=0),
    "RGBA.webp": lambda: encoded(half_transparent("RGBA"), format="WEBP", lossless=True),
    "palette.gif": lambda: encoded(half_transparent("RGBA"), format="GIF"),
    "RGBA.tif": lambda: encoded(half_transparent("RGBA"), format="TIFF"),
    "RGBA.avif": lambda: encoded(half_transparent("RGBA"), format="AVIF", quality=95),
}
SELDOM = {"RGBA.avif": needs_avif}


def grey_of_16_bits(values):
    return Image.fromarray(np.tile(np.array(values, dtype=np.uint16), (15, 1)))


@pytest.mark.parametrize("name", [pytest.param(name, marks=SELDOM.get(name, ())) for name in TRANSPARENT])
def test_what_is_transparent_shows_white(name):
    data = TRANSPARENT[name]()
    pixels = np.asarray(decode_image(data)).astype(int)
    assert (pixels[:, 12:] >= 250).all()
    assert (pixels[:, :8].mean(axis=2) < 120).all()  # opaque ones stay
    assert image_digest(data).tobytes() != row_digests([data]).tobytes()  # caches of before are looked at again


def test_partly_transparent_pixels_are_mixed_with_white():
    data = encoded(Image.new("RGBA", SIZE, (0, 0, 0, 127)), format="PNG")
    assert np.unique(np.asarray(decode_image(data))).tolist() == [128]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_greys_of_16_bits_are_scaled(format):
    values = np.linspace(0, 65535, 20).astype(np.uint16)
    data = encoded(grey_of_16_bits(values), format=format)
    pixels = np.asarray(decode_image(data))
    assert pixels.shape == (15, 20, 3) and (pixels[0, :, 0] == values >> 8).all() and pixels.max() == 255
    assert image_digest(data).tobytes() != row_digests([data]).tobytes()


@pytest.mark.parametrize("values", [np.int32, np.float32])
def test_numbers_whose_white_is_unknown_are_refused(values):
    data = encoded(Image.fromarray(np.ones((15, 20), dtype=values)), format="TIFF")
    with pytest.raises(DamagedImageError, match="32 bits"):
        decode_image(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_plain_photos_keep_their_digest(format):
    data = encoded(Image.new("RGB", SIZE, "red"), format=format)
    assert image_digest(data).tobytes() == row_digests([data]).tobytes()
    assert not np.array_equal(image_digest(b""), image_digest(data))


@pytest.mark.parametrize("format", ["TIFF", pytest.param("AVIF", marks=needs_avif)])
def test_formats_that_are_read_since_version_2(format):
    data = encoded(Image.new("RGB", SIZE, (250, 10, 10)), format=format)
    assert np.abs(np.asarray(decode_image(data)).astype(int) - (250, 10, 10)).max() < 10
    assert image_digest(data).tobytes() != row_digests([data]).tobytes()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("JPEG 2000", lambda: encoded(Image.new("RGB", SIZE), format="JPEG2000")),
        ("ICO", lambda: encoded(Image.new("RGB", (16, 16)), format="ICO")),
        ("PPM", lambda: encoded(Image.new("RGB", SIZE), format="PPM")),
        ("PDF", lambda: encoded(Image.new("RGB", SIZE), format="PDF")),
        ("EPS", lambda: encoded(Image.new("RGB", SIZE), format="EPS")),
        ("HEIC", lambda: b"\0\0\0\x18ftypheic" + bytes(50)),
        ("SVG", lambda: b'<?xml version="1.0"?><svg/>'),
        ("HTML", lambda: b"\n<!DOCTYPE html><html>not found</html>"),
    ],
)
def test_other_formats_are_named(name, data):
    with pytest.raises(DamagedImageError, match=f"files of {name} are not read; save it as one of JPEG, PNG"):
        decode_image(data())


@pytest.mark.parametrize(
    "format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", pytest.param("AVIF", marks=needs_avif)]
)
def test_the_limit_of_pixels_holds_for_every_format(format, monkeypatch):
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "blue")]
    is_animated = format in ("PNG", "WEBP", "GIF", "TIFF", "AVIF")
    options = {"save_all": True, "append_images": frames[1:]} if is_animated else {}
    data = encoded(frames[0], format=format, **options)
    first = np.asarray(decode_image(data)).reshape(-1, 3).mean(axis=0)
    assert first[0] > 200 > 50 > first[2]  # of an animation, the first picture
    monkeypatch.setattr(decode, "MAX_PIXELS", 299)
    with pytest.raises(DamagedImageError, match="20 x 15 pixels are too many, at most 299"):
        decode_image(data)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_texts_that_unpack_to_much_are_refused():
    plain = encoded(Image.new("RGB", SIZE), format="PNG")
    bomb = zlib.compress(bytes(8 * 2**20), 9)
    for kind, data in ((b"zTXt", b"a\0\0" + bomb), (b"iCCP", b"a\0\0" + bomb)):
        with pytest.raises(DamagedImageError, match="too large"):
            decode_image(plain[:33] + chunk(kind, data) + plain[33:])


def test_a_canvas_that_is_a_bomb_is_refused_before_it_is_made():
    plain = encoded(Image.new("RGBA", SIZE), format="PNG")
    header = struct.pack(">II", 60_000, 60_000) + plain[24:29]
    with pytest.raises(DamagedImageError, match="more than 50,000,000 pixels"):
        decode_image(plain[:8] + chunk(b"IHDR", header) + plain[33:])


PHOTOS = [name for name in TRANSPARENT if name not in SELDOM or features.check("avif")]


@settings(max_examples=50)
@given(name=st.sampled_from(PHOTOS), place=st.integers(0, 400), value=st.integers(0, 255), end=st.integers(0, 2000))
def test_damaged_files_give_one_error_or_an_image(name, place, value, end):
    data = bytearray(TRANSPARENT[name]())
    data[place % len(data)] = value
    data = bytes(data[: max(8, end)])
    image_digest(data)
    try:
        image = decode_image(data)
    except DamagedImageError as error:
        assert str(error)
    else:
        assert image.mode == "RGB"


def jpeg_of_many_scans():
    """A progressive photo of 12 megapixels, one of whose scans is repeated."""
    data = encoded(Image.new("L", (4000, 3000)), format="JPEG", progressive=True)
    *begin, last = data.split(b"\xff\xda")
    return b"\xff\xda".join([*begin, *[last.removesuffix(b"\xff\xd9")] * 3000]) + b"\xff\xd9"


def gif_of_long_comments():
    plain = encoded(Image.new("L", SIZE), format="GIF")
    comment = b"\x21\xfe" + (b"\xff" + bytes(255)) * 60_000 + b"\0"
    head = 13 + 3 * 2 ** ((plain[10] & 7) + 1)
    return plain[:head] + comment + plain[head:]


def exif_of(n_tags, size):
    """EXIF each of whose tags claims the same bytes."""
    tags = b"".join(struct.pack("<HHII", 0x9000 + tag, 7, size, 8) for tag in range(n_tags))
    return b"II*\0" + struct.pack("<IH", 8, n_tags) + tags + bytes(4 + size)


def png_of_much_exif():
    plain = encoded(Image.new("RGB", (3000, 3000)), format="PNG")
    return plain[:33] + chunk(b"eXIf", exif_of(2000, 2**20)) + plain[33:]


@pytest.mark.parametrize(
    ("make", "limits", "message"),
    [
        (jpeg_of_many_scans, PhotoLimits(photo_seconds=0.5), "takes longer than 0.5 seconds"),
        (gif_of_long_comments, PhotoLimits(photo_seconds=0.01), "takes longer than 0.01 seconds"),
        (png_of_much_exif, PhotoLimits(photo_memory=5), "takes more than 5 MiB of memory"),
    ],
)
def test_what_may_take_for_ever_is_ended(make, limits, message):
    with pytest.raises(
        DamagedImageError, match=f"{message}: save it anew, or raise photo_seconds or photo_memory and"
    ):
        decode_image(make(), limits)


def test_what_is_decoded_in_a_child_looks_the_same(monkeypatch):
    photos = [
        encoded(grey_of_16_bits(np.arange(20) * 3000), format="TIFF"),
        *(make() for make in TRANSPARENT.values()),
    ]
    here = [(decode_image(data).tobytes(), image_digest(data).tobytes()) for data in photos]
    monkeypatch.setattr(decode, "_is_bounded", lambda data: False)
    assert [(decode_image(data).tobytes(), image_digest(data).tobytes()) for data in photos] == here
    with pytest.raises(DamagedImageError, match="files of PDF are not read"):
        decode_image(b"%PDF-")
