"""What a finished run leaves behind, written by hand instead of trained."""

import json

import pandas as pd

from recbole_perpeft.training.rank_metrics import metric_of_ranks

NAMES = ("hit@5", "ndcg@5")


def write_run(folder, targets, ranks, groups=None, parameters=1000, seconds=2.0, memory=500.0):
    """What a run leaves behind; rows in an order of its own."""
    folder.mkdir(parents=True)
    table = pd.DataFrame({"user_id": [f"u{user}" for user in range(len(ranks))], "item_id": targets, "rank": ranks})
    if groups is not None:
        table["group"] = groups
    table.sample(frac=1, random_state=len(folder.name)).to_parquet(folder / "test_ranks.parquet", index=False)
    result = {
        "best_valid_score": 0.3,
        "test_result": {name: metric_of_ranks(name, ranks).mean() for name in NAMES} | {"giniindex@5": 0.5},
        "median_epoch_seconds": seconds,
        "epochs": 2,
        "peak_memory_mb": memory,
        "peak_gpu_memory_mb": None,
        "trainable_parameters": parameters,
        "parameters": 2 * parameters,
    }
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "metrics.csv").write_text(
        "stage,epoch,train_loss,train_seconds,ndcg@5\nglobal,0,1,2,\ntrain,0,1,2,0.3\n"
    )
    (folder / "environment.json").write_text(json.dumps({"gpu": None, "threads": 1, "cpus": 2}))
