"""VIP5 learns what users say, and about what."""

from recbole_perpeft.runs.run import run
from recbole_perpeft.use.explain import explain


def test_explanations_name_what_the_user_cares_for(aspects_settings, tmp_path):
    vip5 = {
        "tiny_width": 32,
        "tiny_inner_width": 64,
        "tiny_heads": 2,
        "tiny_layers": 1,
        "tiny_dropout": 0.0,
        "id_scheme": "atomic",
        "user_scheme": "atomic",
        "name_init": "content",
        "task_weights": {"explanation": 1.0},
        "prompts_per_user": 8,
        "train_batch_size": 8,
        "learning_rate": 1e-2,
        "epochs": 15,
        "eval_step": 15,
        "run_folder": str(tmp_path / "run"),
    }
    run("VIP5", "aspects", None, aspects_settings | vip5)
    report = explain(tmp_path / "run", "C-3", "valid", show_progress=False)
    assert report.scores["named"] > 25 > 5 * report.scores["chance"]
    assert report.scores["BLEU-4"] > report.baseline["BLEU-4"] + 5
