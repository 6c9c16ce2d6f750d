"""Products of the made-up catalogue ``aspects``: what they look like and how their titles name it.

A product has one value of each of four visible aspects. Pictures are drawn with plain NumPy (no fonts, no image
library in between), so that the same seed gives the same pixels on every machine.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

OVERSAMPLING = 2  # every pixel is the mean of 2 x 2 samples: smooth edges without a drawing library

Mask = Callable[[np.ndarray, np.ndarray], np.ndarray]
Scene = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Value:
    """One value of an aspect.

    Args:
        name: its plain name.
        words: the ways in which a title may say it; ``|`` separates the form before the noun from the form after it.
    """

    name: str
    words: tuple[str, ...]


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    angle = (np.arctan2(u, -v) / (2 * np.pi) * 5) % 1.0
    return np.hypot(u, v) < 1.05 - 1.2 * np.minimum(angle, 1 - angle)


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    x, y = 1.2 * u, -1.2 * v + 0.15
    return (x * x + y * y - 0.8) ** 3 < 1.3 * x * x * y**3


def _mug(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    cup = (np.abs(u + 0.2) < 0.6) & (np.abs(v) < 0.8)
    handle = np.hypot(u - 0.45, v)
    return cup | ((handle < 0.5) & (handle > 0.25) & (u > 0.3))


def _bottle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return ((np.abs(u) < 0.48) & (v > -0.2) & (v < 0.95)) | ((np.abs(u) < 0.18) & (v <= -0.2) & (v > -1.0))


def _house(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    walls = (np.abs(u) < 0.6) & (v > -0.1) & (v < 0.9)
    roof = (v <= -0.1) & (v > -0.95) & (np.abs(u) < 1.1 * (v + 0.95))
    return walls | roof


SHAPES: dict[Value, Mask] = {
    Value("ball", ("ball", "globe", "sphere")): lambda u, v: np.hypot(u, v) < 0.88,
    Value("box", ("box", "crate", "chest")): lambda u, v: np.maximum(np.abs(u), np.abs(v)) < 0.76,
    Value("kite", ("kite", "glider")): lambda u, v: np.abs(u) * 1.25 + np.abs(v) < 1.0,
    Value("tent", ("tent", "teepee")): lambda u, v: (v < 0.75) & (np.abs(u) < (v + 0.95) * 0.56),
    Value("star", ("star ornament", "star")): _star,
    Value("cushion", ("heart cushion", "heart pillow")): _heart,
    Value("hoop", ("hoop", "ring", "wreath")): lambda u, v: np.abs(np.hypot(u, v) - 0.68) < 0.25,
    Value("lamp", ("moon lamp", "crescent light")): lambda u, v: (
        (np.hypot(u, v) < 0.92) & (np.hypot(u - 0.45, v + 0.1) > 0.68)
    ),
    Value("mug", ("mug", "cup", "tankard")): _mug,
    Value("bottle", ("bottle", "flask")): _bottle,
    Value("birdhouse", ("birdhouse", "nesting house")): _house,
    Value("hourglass", ("hourglass", "sand timer")): lambda u, v: (
        (np.abs(v) < 0.9) & (np.abs(u) < 0.12 + 0.75 * np.abs(v))
    ),
}

COLOURS: dict[Value, tuple[int, int, int]] = {
    Value("red", ("red", "crimson", "scarlet")): (208, 36, 44),
    Value("orange", ("orange", "tangerine")): (240, 132, 28),
    Value("yellow", ("yellow", "lemon")): (244, 214, 44),
    Value("green", ("green", "emerald")): (42, 150, 62),
    Value("teal", ("teal", "turquoise")): (30, 168, 164),
    Value("blue", ("blue", "cobalt", "azure")): (38, 82, 206),
    Value("purple", ("purple", "violet")): (128, 50, 168),
    Value("pink", ("pink", "rose")): (240, 130, 178),
    Value("brown", ("brown", "chestnut")): (124, 76, 40),
    Value("black", ("black", "jet")): (34, 34, 38),
    Value("white", ("white", "ivory")): (246, 244, 238),
    Value("grey", ("grey", "silver")): (140, 142, 148),
}

PATTERNS: dict[Value, Mask] = {
    Value("plain", ("plain", "solid", "|in one colour")): lambda u, v: np.zeros(u.shape, dtype=bool),
    Value("striped", ("striped", "|with stripes")): lambda u, v: np.floor(v * 3.2) % 2 == 0,
    Value("ribbed", ("ribbed", "pinstriped", "|with ribs")): lambda u, v: np.floor(u * 3.2) % 2 == 0,
    Value("diagonal", ("diagonal", "slanted", "|with slanted lines")): lambda u, v: np.floor((u + v) * 2.4) % 2 == 0,
    Value("dotted", ("dotted", "polka dot", "|with dots")): lambda u, v: (
        np.hypot((u * 1.9) % 1 - 0.5, (v * 1.9) % 1 - 0.5) < 0.3
    ),
    Value("checked", ("checked", "chequered", "|with checks")): lambda u, v: (
        (np.floor(u * 2.6) + np.floor(v * 2.6)) % 2 == 0
    ),
    Value("zigzag", ("zigzag", "chevron", "|with zigzags")): lambda u, v: (
        np.floor((v + np.abs((u * 1.6) % 1 - 0.5) * 0.7) * 3.0) % 2 == 0
    ),
    Value("plaid", ("plaid", "tartan", "|in tartan")): lambda u, v: ((u * 1.9) % 1 < 0.28) | ((v * 1.9) % 1 < 0.28),
    Value("ringed", ("ringed", "target", "|with rings")): lambda u, v: np.floor(np.hypot(u, v) * 4.4) % 2 == 0,
    Value("two-tone", ("halved", "split", "|in two tones")): lambda u, v: u < 0.0,
}


def _blend(share: np.ndarray, first: tuple[int, int, int], second: tuple[int, int, int]) -> np.ndarray:
    share = np.clip(share, 0.0, 1.0)[..., None]
    return (1 - share) * np.array(first, dtype=float) + share * np.array(second, dtype=float)


def _split(where: np.ndarray, first: tuple[int, int, int], second: tuple[int, int, int]) -> np.ndarray:
    return _blend(where.astype(float), first, second)


SETTINGS: dict[Value, Scene] = {
    Value("studio", ("studio", "showroom")): lambda x, y: _blend(y, (226, 226, 230), (204, 204, 210)),
    Value("beach", ("beach", "seaside", "shore")): lambda x, y: _split(y > 0.55, (150, 204, 236), (234, 212, 160)),
    Value("forest", ("forest", "woodland")): lambda x, y: _split((x * 5) % 1 < 0.3, (58, 98, 56), (70, 52, 36)),
    Value("snow", ("snow", "winter")): lambda x, y: _split(y > 0.6, (172, 188, 208), (248, 250, 254)),
    Value("night", ("night", "midnight")): lambda x, y: _split(
        np.hypot((x * 4) % 1 - 0.5, (y * 4) % 1 - 0.5) < 0.13, (18, 20, 56), (246, 240, 190)
    ),
    Value("sunset", ("sunset", "evening")): lambda x, y: _blend(y, (92, 48, 112), (250, 160, 84)),
    Value("kitchen", ("kitchen", "cooking")): lambda x, y: _split(
        ((x * 4) % 1 < 0.12) | ((y * 4) % 1 < 0.12), (216, 230, 226), (150, 176, 172)
    ),
    Value("city", ("city", "urban", "downtown")): lambda x, y: _split(
        y > 0.25 + 0.35 * (np.floor(x * 5) % 2), (186, 204, 222), (104, 104, 116)
    ),
    Value("desert", ("desert", "canyon")): lambda x, y: _blend(
        (y - 0.4 + 0.1 * np.sin(6 * x)) * 40, (242, 220, 180), (204, 138, 76)
    ),
    Value("meadow", ("meadow", "garden", "picnic")): lambda x, y: _split(y > 0.5, (178, 218, 246), (128, 196, 88)),
}

ASPECTS: dict[str, tuple[Value, ...]] = {
    "shape": tuple(SHAPES),
    "colour": tuple(COLOURS),
    "pattern": tuple(PATTERNS),
    "setting": tuple(SETTINGS),
}

_OPENINGS = ("", "", "", "new ", "classic ", "handmade ", "our ", "lovely ")
_SETTING_PHRASES = ("for the {}", "for {}", "{} edition", "{} style", "made for {}")


def draw_title(rng: np.random.Generator, values: dict[str, int], left_out: frozenset[str] = frozenset()) -> str:
    """A title that names the values of a product in varied words.

    Args:
        rng: source of the choice of words.
        values: aspect name -> index of the value in ``ASPECTS``.
        left_out: aspects that the title is silent about (never the shape).

    Returns:
        The title, its first letter a capital; at most 15 words.
    """

    def say(aspect: str) -> str:
        words = ASPECTS[aspect][values[aspect]].words
        return words[rng.integers(len(words))]

    shape, colour, pattern = say("shape"), say("colour"), say("pattern")
    setting = _SETTING_PHRASES[rng.integers(len(_SETTING_PHRASES))].format(say("setting"))
    opening, order = _OPENINGS[rng.integers(len(_OPENINGS))], rng.random(3)
    before: list[str] = []
    after: list[str] = []
    if "colour" not in left_out:
        (after if order[0] < 0.25 else before).append(f"in {colour}" if order[0] < 0.25 else colour)
    if "pattern" not in left_out:
        (after if pattern.startswith("|") else before).append(pattern.removeprefix("|"))
    if order[1] < 0.5:
        before.reverse()
    if "setting" not in left_out:
        after.insert(0 if order[2] < 0.3 else len(after), setting)
    title = opening + " ".join([*before, shape, *after])
    return title[0].upper() + title[1:]


def title_words() -> list[str]:
    """Every word, in lower case, that `draw_title` can use, sorted."""
    phrases = [phrase for values in ASPECTS.values() for value in values for phrase in value.words]
    phrases += [*_OPENINGS, *(phrase.format("") for phrase in _SETTING_PHRASES), "in"]
    return sorted({word for phrase in phrases for word in phrase.removeprefix("|").split()})


def draw_image(rng: np.random.Generator, values: dict[str, int], side: int) -> np.ndarray:
    """The picture of a product: its shape, filled with colour and pattern, in front of its setting.

    Place, size, tilt and shades vary with ``rng``.

    Args:
        rng: source of the variation.
        values: aspect name -> index of the value in ``ASPECTS``.
        side: height and width in pixels.

    Returns:
        uint8 array [side, side, 3].
    """
    shift_x, shift_y = rng.uniform(-0.12, 0.12, size=2)
    scale, tilt = rng.uniform(0.6, 0.8), rng.uniform(-0.2, 0.2)
    shade, phase = rng.uniform(-14, 14, size=(2, 3)), rng.uniform(-0.25, 0.25, size=2)

    ticks = (np.arange(side * OVERSAMPLING) + 0.5) / (side * OVERSAMPLING)
    x, y = np.meshgrid(ticks, ticks)
    across, down = 2 * x - 1 - shift_x, 2 * y - 1 - shift_y
    u = (np.cos(tilt) * across + np.sin(tilt) * down) / scale
    v = (np.cos(tilt) * down - np.sin(tilt) * across) / scale

    inside = list(SHAPES.values())[values["shape"]](u, v)
    drawn = list(PATTERNS.values())[values["pattern"]](u + phase[0], v + phase[1])
    if ASPECTS["pattern"][values["pattern"]].name == "two-tone":
        drawn = u < 0.0  # the seam stays in the middle
    colour = np.array(list(COLOURS.values())[values["colour"]], dtype=float)
    second = colour * 0.45 if colour.mean() > 110 else colour * 0.45 + 140
    image = list(SETTINGS.values())[values["setting"]](x, y) + shade[1]
    image[inside] = colour + shade[0]
    image[inside & drawn] = second + shade[0]

    image = image.reshape(side, OVERSAMPLING, side, OVERSAMPLING, 3).mean(axis=(1, 3))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
