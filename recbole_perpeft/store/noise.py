"""Content that says nothing of its item: photos of noise, and texts of words that are drawn."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
from PIL import Image

from recbole_perpeft.core.digest import columns_digest
from recbole_perpeft.core.whole import written_whole
from recbole_perpeft.data.content import IMAGE, TITLE, ItemContent

_SIDE = 32  # pixels of a photo


def noise_of(content: ItemContent, folder: Path, seed: int) -> ItemContent:
    """The same items with noise in the place of their content.

    Texts keep their number of words, which are drawn from the words of all texts. Photos are files below `folder`,
    made once, so that what is computed of them is stored as that of any photos.

    Args:
        content: the items.
        folder: where photos are kept.
        seed: of what is drawn.
    """
    noisy, generator = copy.copy(content), np.random.default_rng(seed)
    noisy.name = f"{content.name}-noise-{seed}"  # hidden states lie in folders of their own
    noisy.texts = {field: _drawn_texts(texts, generator) for field, texts in content.texts.items()}
    noisy.titles = noisy.texts.get(TITLE, content.titles)
    if IMAGE in content.fields:
        place = folder / "noise" / columns_digest(content.tokens, [str(seed)]).hexdigest()
        noisy.image_paths = [_photo(place / f"{row}.png", generator) for row in range(len(content))]
    return noisy


def _drawn_texts(texts: list[str], generator: np.random.Generator) -> list[str]:
    words = [text.split() for text in texts]
    vocabulary = np.array(sorted({word for of_text in words for word in of_text}) or [""], dtype=object)
    drawn = vocabulary[generator.integers(0, len(vocabulary), sum(map(len, words)))]
    parts = np.split(drawn, np.cumsum([len(of_text) for of_text in words])[:-1])
    return [" ".join(part) for part in parts]


def _photo(path: Path, generator: np.random.Generator) -> Path:
    pixels = generator.integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as draft:
            Image.fromarray(pixels).save(draft, format="png")
    return path
