"""VIP5 learns what is there to be learnt."""

import numpy as np
import pytest
import yaml

from recbole_perpeft.runs.run import run

N_ITEMS = 20


@pytest.fixture
def cycles(tmp_path):
    """A `data_path` with users who buy items in the same circular order, each from a place of his own."""
    rng = np.random.default_rng(0)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    circle = rng.permutation(N_ITEMS)
    for user in range(100):
        start = rng.integers(N_ITEMS)
        lines += [f"u{user}\ti{circle[(start + day) % N_ITEMS]}\t{day}" for day in range(rng.integers(6, 10))]
    prompts = {"sequential": [{"name": "next", "input": "{history} next", "target": "{item}"}]}
    (tmp_path / "prompts.yaml").write_text(yaml.safe_dump(prompts))
    (tmp_path / "cycles").mkdir()
    (tmp_path / "cycles" / "cycles.inter").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_what_follows_is_learnt_and_beats_popularity(cycles):
    settings = {
        "data_path": str(cycles),
        "runs_folder": str(cycles / "runs"),
        "use_gpu": False,
        "show_progress": False,
        "topk": [1, 5],
        "valid_metric": "Hit@1",
        "mask_history": "none",
        "MAX_ITEM_LIST_LENGTH": 2,
    }
    vip5 = {
        "backbone": "tiny",
        "freeze_backbone": False,
        "tiny_width": 32,
        "tiny_inner_width": 64,
        "tiny_heads": 2,
        "tiny_layers": 1,
        "tiny_dropout": 0.0,
        "n_visual_tokens": 0,
        "task_weights": {"sequential": 1.0},
        "prompts": str(cycles / "prompts.yaml"),
        "eval_prompt": "next",
        "prompts_per_user": 4,
        "learning_rate": 1e-2,
        "train_batch_size": 25,
        "epochs": 40,
        "eval_step": 40,
    }
    popularity = run("Pop", "cycles", None, settings | {"epochs": 1}, saved=False)["test_result"]
    result = run("VIP5", "cycles", None, settings | vip5, saved=False)["test_result"]
    assert popularity["hit@1"] < 0.3
    assert result["hit@1"] > 0.7
