"""What every trained content model must do, whatever it is made of."""

import numpy as np
import pytest

from recbole_perpeft.runs.run import load, run


def check_that_a_run_learns(name, settings):
    """A run on `small_aspects` learns, and its checkpoint gives the numbers that the run has told."""
    result = run(name, config_dict=settings)
    losses = np.genfromtxt(f"{result['run_folder']}/metrics.csv", delimiter=",", names=True, usecols=[2])["train_loss"]
    assert losses[-1] < losses[0]
    # 80 items, of which a user has seen some: blind guessing gives less than 0.2.
    assert result["best_valid_result"]["hit@10"] > 0.2
    config, model, *_, test_data = load(result["run_folder"])
    config["checkpoint_dir"] = result["run_folder"]
    trainer = model.trainer_class(config, model)
    assert trainer.evaluate(test_data, load_best_model=False) == pytest.approx(result["test_result"])
