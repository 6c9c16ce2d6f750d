"""What users of `aspects` say, for many purchases at once."""

import tracemalloc

import numpy as np

from recbole_perpeft.data.aspects.drawing import ASPECTS
from recbole_perpeft.data.aspects.sentences import DISLIKED, LIKED, draw_explanations


def purchases(n):
    rng = np.random.default_rng(0)
    group = rng.integers(len(ASPECTS), size=n)
    n_values = np.array([len(values) for values in ASPECTS.values()])
    return group, (rng.random(n) * n_values[group]).astype(np.int64), rng.random(n) < 0.9


def peak_of(n):
    """Bytes that drawing n explanations takes at most."""
    arguments = purchases(n)
    tracemalloc.start()
    try:
        draw_explanations(np.random.default_rng(1), *arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_grows_with_the_purchases_alone():
    small, large = peak_of(50_000), peak_of(200_000)
    assert large < 4.2 * small
    assert large < 200 * 200_000  # bytes a purchase


def test_every_sentence_and_rating_is_one_of_its_kind():
    group, values, likes = purchases(20_000)
    said = draw_explanations(np.random.default_rng(1), group, values, likes)
    aspects = list(ASPECTS)
    allowed = {
        (liked, aspect, place): {text.format(value.name) for text in (LIKED if liked else DISLIKED)[aspect]}
        for liked in (False, True)
        for aspect in aspects
        for place, value in enumerate(ASPECTS[aspect])
    }
    heard = {key: set() for key in allowed}
    for liked, place, value, text in zip(likes.tolist(), group, values.tolist(), said["explanation"], strict=True):
        heard[liked, aspects[place], value].add(text)
    assert heard == allowed  # all of them come
    assert said["rating"].between(2, 5).all() and ((said["rating"] >= 4) == likes).all()
