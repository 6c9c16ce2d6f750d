"""Variants of PerPEFT and its baselines on one data set: every variant with several seeds, one table.

    python scripts/results_table.py --output=results [--seeds=3] [--only="PerPEFT;GlobalPEFT"] [--key=value ...]

Every run has a folder below the output folder; a finished one is not repeated, an interrupted one is resumed.
`results.md` and `results.csv` are written at the end.

The significance is a paired t-test over users: NDCG@20 of every user, averaged over the seeds.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import ttest_rel
from sklearn.metrics import adjusted_rand_score

from recbole_perpeft.config import Config
from recbole_perpeft.quick_start import load, resume, run

TRUTH = "hidden_group"  # column of the .user file that names the true group, where a data set knows it
# Name in the table: (model, settings).
VARIANTS = {
    "SASRec (ids)": ("SASRec", {}),
    "GlobalPEFT, peft_type none": ("GlobalPEFT", {"peft_type": "none"}),
    "GlobalPEFT": ("GlobalPEFT", {}),
    "PerPEFT, random groups": ("PerPEFT", {"grouping": "random"}),
    "PerPEFT, catalogue negatives": ("PerPEFT", {"group_negative_ratio": 0.0}),
    "PerPEFT": ("PerPEFT", {}),
    "PerPEFT, regroup_every 1": ("PerPEFT", {"regroup_every": 1}),
    "PerPEFT, hidden groups given": ("PerPEFT", {"grouping": "user_field", "group_field": TRUTH}),
}
METRICS = ("hit@10", "hit@20", "ndcg@10", "ndcg@20")
CUT = 20


def run_variant(folder: Path, model: str, settings: dict, common: dict) -> dict:
    """Result of a run in its folder, trained if it is not there yet."""
    result = folder / "result.json"
    if not result.is_file():
        if (folder / "config.yaml").is_file():
            resume(folder)
        else:
            run(model, config_dict=common | settings | {"run_folder": str(folder)})
    return json.loads(result.read_text())


def user_ndcg(folder: Path) -> pd.Series:
    """NDCG@20 of every user."""
    ranks = pd.read_parquet(folder / "test_ranks.parquet").set_index("user_id")["rank"]
    return (1 / np.log2(ranks + 1)).where(ranks <= CUT, 0.0)


def rand_index(folder: Path) -> float:
    """Agreement of the groups of a run with the true ones, 1 = the same; NaN where they are not known."""
    _, model, dataset, *_ = load(folder)
    if dataset.user_feat is None:
        return np.nan
    return adjusted_rand_score(dataset.user_feat[TRUTH][1:].numpy(), model.user_group[1:].numpy())


def main() -> None:
    """Trains what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs and the table")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds (default 3)")
    parser.add_argument("--first_seed", type=int, default=2026, help="the others follow it (default 2026)")
    parser.add_argument("--only", help="names of variants, separated by ;")
    flags, rest = parser.parse_known_args()
    common = dict(argument.removeprefix("--").split("=", 1) for argument in rest) | {"show_progress": False}
    config = Config("PerPEFT", config_dict=common)
    if (config.dataset_folder / f"{config['dataset']}.user").is_file():
        common["load_col"] = {**config["load_col"], "user": ["user_id", TRUTH]}
    names = flags.only.split(";") if flags.only else list(VARIANTS)
    rows, per_user = [], {}
    for name in names:
        model, settings = VARIANTS[name]
        for seed in range(flags.first_seed, flags.first_seed + flags.seeds):
            folder = flags.output / f"{name.replace(' ', '_').replace(',', '')}-seed{seed}"
            result = run_variant(folder, model, settings, common | {"seed": seed})
            row = {"variant": name, "seed": seed, "valid": result["best_valid_score"], **result["test_result"]}
            if model == "PerPEFT":
                row["rand index"] = rand_index(folder)
            rows.append(row)
            per_user.setdefault(name, []).append(user_ndcg(folder))
            print(row, flush=True)
    write_table(flags.output, pd.DataFrame(rows), {name: sum(parts) / len(parts) for name, parts in per_user.items()})


def write_table(output: Path, runs: pd.DataFrame, per_user: dict[str, pd.Series]) -> None:
    """Mean and standard deviation over seeds, and p-values against PerPEFT and GlobalPEFT."""
    runs.to_csv(output / "results.csv", index=False)
    columns = [*METRICS, "rand index"]
    lines = [" | ".join(["", "variant", *columns, "p against GlobalPEFT", "p against PerPEFT", ""]).strip()]
    lines.append("|---" * (len(columns) + 3) + "|")
    for name, group in runs.groupby("variant", sort=False):
        cells = [name]
        for column in columns:
            values = group[column].dropna() if column in group else []
            cells.append(f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else "")
        for other in ("GlobalPEFT", "PerPEFT"):
            known = other in per_user and other != name
            cells.append(f"{ttest_rel(per_user[name], per_user[other]).pvalue:.1e}" if known else "")
        lines.append("| " + " | ".join(cells) + " |")
    table = "\n".join(lines)
    (output / "results.md").write_text(table + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
