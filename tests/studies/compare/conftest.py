"""A comparison of three models with two seeds on 60 users, written by hand instead of trained."""

import numpy as np
import pandas as pd
import pytest

from recbole_perpeft.studies.compare.jobs.plan import DataDescription, DatasetPlan, Job
from recbole_perpeft.studies.compare.jobs.runs import Outcome
from recbole_perpeft.studies.compare.jobs.specs import ModelSpec
from recbole_perpeft.studies.compare.records import collect
from support.finished_run import write_run

N_USERS, N_ITEMS = 60, 20
PROTOCOL = {
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": {"valid": "full", "test": "full"}},
    "mask_history": "all",
    "stopping_step": 10,
    "metrics": ["Hit", "NDCG", "GiniIndex"],
    "topk": [5],
    "valid_metric": "NDCG@5",
}


@pytest.fixture
def toy_runs(tmp_path):
    """Outcomes, the plan, and ranks [n_users] by model and seed; one run of `good` with the seed 3 has failed."""
    rng = np.random.default_rng(1)
    targets = np.array([f"i{item}" for item in rng.integers(0, N_ITEMS, N_USERS)])
    description = DataDescription(
        users=pd.Index([f"u{user}" for user in range(N_USERS)]),
        items=pd.Index([f"i{item}" for item in range(N_ITEMS)]),
        history_length=rng.integers(2, 30, N_USERS),
        train_count=np.concatenate([[0, 0, 90, 70], rng.integers(1, 40, N_ITEMS - 4)]),
        known_user=np.ones(N_USERS, dtype=bool),
        true_group=np.arange(N_USERS) % 3,
    )
    ranks, outcomes = {}, []
    for place, (name, most) in enumerate({"base": 20, "good": 6, "<b>|&_{odd}": 12}.items()):
        for seed in (1, 2):
            ranks[name, seed] = rng.integers(1, most, N_USERS)
            job = Job("toy", ModelSpec(name, "BPR"), seed, "key", tmp_path / f"{place}-{seed}", {})
            groups = np.arange(N_USERS) % 3 if name == "good" else None
            write_run(
                job.folder, targets, ranks[name, seed], groups, 10 ** (place + 2), 1.0 + place, 500 - 100 * place
            )
            outcomes.append(Outcome(job))
    failed = Job("toy", ModelSpec("good", "BPR"), 3, "key", tmp_path / "failed", {})
    outcomes.append(Outcome(failed, "the loss is not finite"))
    plan = DatasetPlan("toy", PROTOCOL, description, [outcome.job for outcome in outcomes])
    return plan, outcomes, ranks, targets


@pytest.fixture
def toy_record(toy_runs):
    """The runs of `toy_runs`, read."""
    plan, outcomes, *_ = toy_runs
    return collect(plan, outcomes)
