"""What the users of the made-up data set ``aspects`` say about their purchases."""

import numpy as np
import pandas as pd

from recbole_perpeft.data.aspects.drawing import ASPECTS

# By aspect: what users say who got what they like, and who did not. Each sentence is about the aspect they attend to.
LIKED: dict[str, tuple[str, ...]] = {
    "shape": ("another {} for my collection", "i buy every {} that i see", "a {} is what i was after"),
    "colour": ("{} is the colour i always go for", "the {} matches all that i own", "i wanted something {}"),
    "pattern": ("the {} surface made me buy it", "i like it {}", "nothing beats a {} look"),
    "setting": ("it takes me to the {}", "the {} behind it convinced me", "it belongs to my {} things"),
}
DISLIKED: dict[str, tuple[str, ...]] = {
    "shape": ("a {} is not what i usually get", "i have no use for a {}"),
    "colour": ("{} is not my colour", "a pity that it is {}"),
    "pattern": ("i find the {} surface odd", "it would be nicer if it were not {}"),
    "setting": ("the {} leaves me cold", "i am no friend of the {}"),
}
HEADLINES = ("not my {}", "my kind of {}")  # by whether they like it
RATINGS = np.array([[2, 3], [4, 5]])


def draw_explanations(
    rng: np.random.Generator, group: np.ndarray, values: np.ndarray, likes: np.ndarray
) -> pd.DataFrame:
    """Ratings, words, headlines and sentences for purchases.

    Args:
        rng: source of the choice of sentences and ratings.
        group: index in ``ASPECTS`` of the aspect that each purchase's user attends to [n].
        values: index of the product's value of that aspect [n].
        likes: whether it is one that the user likes [n].

    Returns:
        Columns ``rating``, ``feature`` (the plain name of the value), ``headline`` and ``explanation``.
    """
    aspects = list(ASPECTS)
    words = [[value.name for value in ASPECTS[aspect]] for aspect in aspects]
    first_word = np.cumsum([0, *map(len, words)])[:-1]
    word = first_word[group] + values  # among the words of all aspects
    features = np.array([name for names in words for name in names], dtype=object)
    headlines = np.array([[headline.format(aspect) for aspect in aspects] for headline in HEADLINES], dtype=object)
    sentences = np.full((2, 3, len(features)), None, dtype=object)
    n_sentences = np.array([len(next(iter(said.values()))) for said in (DISLIKED, LIKED)])
    for liked, said in enumerate((DISLIKED, LIKED)):
        for aspect, names, start in zip(aspects, words, first_word, strict=True):
            for number, sentence in enumerate(said[aspect]):
                sentences[liked, number, start : start + len(names)] = [sentence.format(name) for name in names]
    likes = likes.astype(np.int64)
    chosen = (rng.random(len(group)) * n_sentences[likes]).astype(np.int64)
    return pd.DataFrame(
        {
            "rating": RATINGS[likes, rng.integers(2, size=len(group))],
            "feature": features[word],
            "headline": headlines[likes, group],
            "explanation": sentences[likes, chosen, word],
        }
    )
