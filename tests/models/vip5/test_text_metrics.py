"""Text metrics at word level, on cases worked out by hand."""

import math

import pytest

from recbole_perpeft.models.vip5.text_metrics import chance_share, named_share, text_scores


def test_equal_sentences_score_all():
    scores = text_scores(["the red mug is nice", "A b c d"], ["The red mug is nice", "a b  c d"])
    assert all(score == pytest.approx(100) for score in scores.values())


def test_scores_by_hand():
    scores = text_scores(["a b c d e f"], ["a b c d x f g h"])
    # n-gram precisions 5/6, 3/5, 2/4, 1/3 and the penalty for brevity exp(1 - 8 / 6).
    bleu = math.exp(1 - 8 / 6) * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert scores["BLEU-4"] == pytest.approx(100 * bleu)
    assert scores["ROUGE-1"] == pytest.approx(100 * 2 * 5 / (6 + 8))
    assert scores["ROUGE-2"] == pytest.approx(100 * 2 * 3 / (5 + 7))
    assert scores["ROUGE-L"] == pytest.approx(100 * 2 * 5 / (6 + 8))


def test_words_are_compared_not_letters():
    assert text_scores(["abcdefgh"], ["abcdefgi"]) == {"BLEU-4": 0, "ROUGE-1": 0, "ROUGE-2": 0, "ROUGE-L": 0}


def test_means_count_every_row():
    scores = text_scores(["a", "a", "b"], ["a", "a", "c"])
    assert scores["ROUGE-1"] == pytest.approx(200 / 3)


def test_named_words_are_whole_words():
    assert named_share(["i like red things", "it is reddish", "Red"], ["red", "red", "red"]) == pytest.approx(200 / 3)
    assert named_share(["a two-tone mug"], ["two-tone"]) == 100
    assert chance_share(["red", "red", "blue", "Red"]) == pytest.approx(100 * (9 + 1) / 16)
