"""VIP5 on a small catalogue."""

import pytest


@pytest.fixture
def prepare_vip5(prepare):
    """VIP5 with a backbone of width 16 and few candidates."""

    def make(**settings):
        tiny = {"tiny_width": 16, "tiny_inner_width": 32, "tiny_heads": 2, "tiny_layers": 1, "tiny_dropout": 0.0}
        few = {"n_candidates": 5, "task_weights": {"sequential": 1.0, "direct": 1.0, "explanation": 1.0}}
        return prepare("VIP5", **(tiny | few | settings))

    return make
