import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.studies.compare import analysis
from recbole_perpeft.studies.compare.records import collect
from recbole_perpeft.training.rank_metrics import SLICES

MODELS = ("base", "good", "<b>|&_{odd}")


def ndcg(rank, cut=5):
    return 1 / math.log2(rank + 1) if rank <= cut else 0.0


def mean_ndcg(ranks, model, user):
    return (ndcg(ranks[model, 1][user]) + ndcg(ranks[model, 2][user])) / 2


def test_mean_and_standard_deviation_over_seeds(toy_runs, toy_record):
    ranks = toy_runs[2]
    table = analysis.quality(toy_record).set_index(["model", "metric"])
    for model in MODELS:
        of_seeds = [np.mean([ndcg(rank) for rank in ranks[model, seed]]) for seed in (1, 2)]
        row = table.loc[(model, "ndcg@5")]
        assert row["seeds"] == 2 and row["mean"] == pytest.approx(np.mean(of_seeds))
        assert row["sd"] == pytest.approx(abs(of_seeds[0] - of_seeds[1]) / math.sqrt(2))


def test_significance_over_users(toy_runs, toy_record):
    ranks = toy_runs[2]
    table = analysis.significance(toy_record, "base").set_index(["model", "metric"])
    users = {model: [mean_ndcg(ranks, model, user) for user in range(60)] for model in MODELS}
    p_t = {model: stats.ttest_rel(users[model], users["base"]).pvalue for model in MODELS[1:]}
    for model, p_value in p_t.items():
        row = table.loc[(model, "ndcg@5")]
        assert row["p_t"] == pytest.approx(p_value)
        gains = np.round(np.subtract(users[model], users["base"]), 9)  # the same gain may differ in its last bits
        assert row["p_wilcoxon"] == pytest.approx(stats.wilcoxon(gains).pvalue)
        assert row["improvement"] == pytest.approx(np.mean(users[model]) / np.mean(users["base"]) - 1)
    smallest = min(p_t, key=p_t.get)
    assert table.loc[(smallest, "ndcg@5"), "p_t_holm"] == pytest.approx(2 * p_t[smallest])
    assert table.loc[(smallest, "ndcg@5"), "p_t_fdr"] == pytest.approx(min(2 * p_t[smallest], max(p_t.values())))


def test_intervals_and_what_can_be_seen(toy_runs, toy_record):
    ranks = toy_runs[2]
    row = analysis.significance(toy_record, "base").set_index(["model", "metric"]).loc[("good", "ndcg@5")]
    assert row["low"] < row["difference"] < row["high"]
    by_seed = [np.mean([ndcg(rank) for rank in ranks["good", seed]]) for seed in (1, 2)]
    base = [np.mean([ndcg(rank) for rank in ranks["base", seed]]) for seed in (1, 2)]
    differences = sorted(np.subtract(by_seed, base))
    assert [row["low_seeds"], row["high_seeds"]] == pytest.approx(differences)  # of two seeds, both ends
    users = [mean_ndcg(ranks, "good", user) - mean_ndcg(ranks, "base", user) for user in range(60)]
    assert row["detectable"] == pytest.approx(2.8016 * np.std(users, ddof=1) / 60**0.5 / np.mean(base), rel=1e-3)
    own = analysis.intervals(toy_record).set_index(["model", "metric"])
    assert own["low"]["good", "ndcg@5"] < own["mean"]["good", "ndcg@5"] < own["high"]["good", "ndcg@5"]
    assert np.isnan(own["low"]["good", "giniindex@5"])


def test_cost_and_tpme(toy_record):
    table = analysis.cost(toy_record).set_index("model")
    assert table["trainable_parameters"].tolist() == [100, 1000, 10000]
    assert table["tpme"].tolist() == pytest.approx([0.45, 0.45 / 2 + 0.1 * 900 / 9900 + 0.45 / 2, 0.55])


def test_memory_of_the_gpu_counts_if_all_ran_on_one(toy_runs):
    plan, outcomes, *_ = toy_runs
    for place, outcome in enumerate(outcomes[:-1]):
        path = outcome.job.folder / "result.json"
        gpu = {"allocated": 100.0 + place // 2, "reserved": 900.0}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"peak_gpu_memory_mb": gpu}))
    table = analysis.cost(collect(plan, outcomes))
    assert table["gpu_memory_mb"].tolist() == [100, 101, 102]
    assert table["tpme"].tolist() == pytest.approx([0, 0.45 / 2 + 0.1 * 900 / 9900 + 0.45 / 2, 1])


def test_by_length_of_history(toy_runs, toy_record):
    plan, _, ranks, _ = toy_runs
    table = analysis.by_history(toy_record)
    sizes = table.drop_duplicates("part")["rows"]
    assert sizes.sum() == 60 and len(sizes) == 4 and sizes.min() >= 8
    for row in table.itertuples():
        least, most = (int(number) for number in row.part.removesuffix(" items").split("–"))
        users = [user for user in range(60) if least <= plan.description.history_length[user] <= most]
        assert len(users) == row.rows
        assert row.value == pytest.approx(np.mean([mean_ndcg(ranks, row.model, user) for user in users]))


def test_histories_of_one_length(toy_record):
    description = dataclasses.replace(toy_record.plan.description, history_length=np.full(60, 7))
    record = dataclasses.replace(toy_record, plan=dataclasses.replace(toy_record.plan, description=description))
    assert set(analysis.by_history(record)["part"]) == {"7 items"}


def test_by_popularity(toy_runs, toy_record):
    plan, _, ranks, targets = toy_runs
    counts = dict(zip(plan.description.items, plan.description.train_count, strict=True))
    sold = sorted((count for count in counts.values() if count), reverse=True)
    head, torso = sold[round(0.1 * len(sold)) - 1], sold[round(0.5 * len(sold)) - 1]
    assert analysis.popularity_borders(plan.description.train_count) == (head, torso)
    table = analysis.by_popularity(toy_record)
    parts = {"head": (head, 1000), "torso": (torso, head - 1), "tail": (1, torso - 1), "cold": (0, 0)}
    for row in table.itertuples():
        least, most = parts[row.part.split()[0]]
        users = [user for user in range(60) if least <= counts[targets[user]] <= most]
        assert len(users) == row.rows > 0
        assert row.value == pytest.approx(np.mean([mean_ndcg(ranks, row.model, user) for user in users]))
    assert set(table["part"].str.split().str[0]) == set(parts)


@pytest.mark.parametrize(("counts", "borders"), [([0, 0], (1, 1)), ([3], (3, 3)), ([5, 5, 5, 5], (5, 5))])
def test_borders_of_small_catalogues(counts, borders):
    assert analysis.popularity_borders(np.array(counts)) == borders


def test_by_user_group(toy_runs, toy_record):
    ranks = toy_runs[2]
    table = analysis.by_group(toy_record, "base")
    assert set(table["model"]) == {"good"} and len(table) == 6 and (table["rand_index"] == 1).all()
    for row in table.itertuples():
        users = range(row.group, 60, 3)
        assert row.rows == 20
        assert row.value == pytest.approx(np.mean([ndcg(ranks["good", row.seed][user]) for user in users]))
        assert row.baseline == pytest.approx(np.mean([ndcg(ranks["base", row.seed][user]) for user in users]))


def test_rows_that_a_model_lacks_are_left_out(toy_runs):
    plan, outcomes, ranks, _ = toy_runs
    path = outcomes[0].job.folder / "test_ranks.parquet"
    table = pd.read_parquet(path)
    table[table["user_id"] != "u7"].to_parquet(path, index=False)
    record = collect(plan, outcomes)
    assert record.rows.n_left_out == 1 and 7 not in record.rows.users and len(record.rows.users) == 59
    place = record.rows.users.tolist().index(8)
    assert record.rows.values["good"][place, 1] == pytest.approx(mean_ndcg(ranks, "good", 8))


def test_users_with_several_rows_count_once(toy_record):
    rows = dataclasses.replace(toy_record.rows, users=np.repeat(np.arange(30), 2))
    values = toy_record.rows.values["good"][:, 1].reshape(30, 2).mean(axis=1)
    np.testing.assert_allclose(rows.of_users("good", "ndcg@5"), values)


def test_several_targets_give_no_significance(toy_runs):
    plan, outcomes, *_ = toy_runs
    (outcomes[0].job.folder / "test_ranks.parquet").unlink()
    record = collect(plan, outcomes)
    assert record.rows is None and analysis.significance(record, "base").empty
    assert len(analysis.quality(record)) == 9
    assert "runs lack test_ranks.parquet that other seeds have" in record.remarks[0]
    (outcomes[1].job.folder / "test_ranks.parquet").unlink()
    assert not collect(plan, outcomes).remarks  # as of a model whose users have several targets


def test_all_that_is_said_of_a_difference_is_over_the_same_users(toy_record):
    users = np.array([0] * 20 + list(range(1, 41)))
    record = dataclasses.replace(toy_record, rows=dataclasses.replace(toy_record.rows, users=users))
    table = analysis.significance(record, "base").set_index(["model", "metric"])
    means = analysis.intervals(record).set_index(["model", "metric"])
    for model in MODELS[1:]:
        row, own = table.loc[(model, "ndcg@5")], means.loc[(model, "ndcg@5")]
        assert own["low"] <= own["mean"] <= own["high"]
        assert row["improvement"] == pytest.approx(row["difference"] / means.loc[("base", "ndcg@5"), "mean"])
        assert own["mean"] == pytest.approx(record.rows.of_users(model, "ndcg@5").mean())


@pytest.mark.parametrize(
    ("file", "content"), [("result.json", "{"), ("metrics.csv", ""), ("test_ranks.parquet", None)]
)
def test_damaged_run_folders(toy_runs, file, content):
    plan, outcomes, *_ = toy_runs
    path = outcomes[0].job.folder / file
    if content is None:
        pd.read_parquet(path).assign(user_id="somebody").to_parquet(path, index=False)
    else:
        path.write_text(content)
    with pytest.raises(PerPEFTError, match="0-1"):
        collect(plan, outcomes)


def test_directions_of_metrics():
    assert analysis.bigger_is_better("ndcg@20") and not analysis.bigger_is_better("giniindex@5")


def test_new_users_and_items_have_parts_of_their_own(toy_record):
    assert analysis.by_slice(toy_record).empty
    description = toy_record.plan.description
    description.known_user[:10] = False
    table = analysis.by_slice(toy_record)
    cold = description.train_count[toy_record.ranked.items] == 0
    new = toy_record.ranked.users < 10
    for part, inside in zip(SLICES, (~new & ~cold, ~new & cold, new & ~cold, new & cold), strict=True):
        rows = table[(table["part"] == part) & (table["model"] == "good") & (table["metric"] == "hit@5")]
        assert rows["rows"].tolist() == ([int(inside.sum())] if inside.any() else [])
        values = toy_record.ranked.values["good"][inside, toy_record.ranked.names.index("hit@5")]
        assert rows["value"].tolist() == ([pytest.approx(values.mean())] if inside.any() else [])
