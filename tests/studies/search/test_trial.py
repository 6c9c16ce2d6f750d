"""What trials need of runs: reports after each epoch, no test metrics, and going on with other settings."""

import pytest
import torch

from recbole_perpeft.runs.record import RunRecord
from recbole_perpeft.runs.run import resume, run
from recbole_perpeft.training.checkpoint import load_checkpoint


@pytest.fixture
def finished(toy_settings, tmp_path):
    """A run of BPR over three epochs: its folder, and what it reported."""
    reports = []
    folder = tmp_path / "run"

    def report(epoch, score):
        # An epoch is on disk before it is reported: whoever is stopped in the report can go on.
        reports.append((epoch, score, load_checkpoint(folder / "last.pth")["epoch"]))

    result = run("BPR", config_dict=toy_settings | {"run_folder": str(folder)}, callback_fn=report, with_test=False)
    return folder, reports, result


def test_every_evaluated_epoch_is_reported_when_it_is_on_disk(finished):
    folder, reports, result = finished
    assert [(epoch, saved) for epoch, _, saved in reports] == [(0, 0), (1, 1), (2, 2)]
    record = RunRecord(folder)
    scores = record.valid_scores("NDCG@10", bigger_is_better=True)
    assert scores.by_epoch == {epoch + 1: pytest.approx(score) for epoch, score, _ in reports}
    assert scores.best == pytest.approx(result["best_valid_score"])
    assert record.finished and record.has_model


def test_a_run_without_test_does_not_look_at_the_test_items(finished):
    folder, _, result = finished
    assert result["test_result"] == {}
    assert not (folder / "test_ranks.parquet").exists()


@pytest.mark.parametrize(("rate", "moves"), [(0.0, False), (0.1, True)])
def test_a_resumed_run_has_the_learning_rate_that_it_is_given(finished, rate, moves):
    folder = finished[0]
    before = load_checkpoint(folder / "last.pth")["state_dict"]
    resume(folder, {"epochs": 4, "learning_rate": rate}, with_test=False)
    after = load_checkpoint(folder / "last.pth")["state_dict"]
    assert any(not torch.equal(before[name], after[name]) for name in before) is moves
