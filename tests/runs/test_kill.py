"""A run that is killed at any moment and resumed ends with the numbers of a run that was left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from recbole_perpeft.cli.main import main

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
N_KILLS = 3  # `pytest -m kill` kills as often as one likes
SEED = 20260209


class Run:
    """A run of PerPEFT by the command line, with a data set, a cache and a run folder of its own."""

    def __init__(self, data, root):
        self.folder = root / "run"
        self.cache = root / "cache"
        settings = {
            "data_path": data.parent,
            "cache_folder": self.cache,
            "run_folder": self.folder,
            "epochs_global": 1,
            "epochs": 2,
            "regroup_every": 1,
            "n_groups": 2,
            "min_group_size": 4,
            "train_batch_size": 8,
            "learning_rate": 0.01,
            "topk": [5, 10],
            "valid_metric": "NDCG@10",
            "show_progress": False,
            "use_gpu": False,
        }
        self.words = ["--model=PerPEFT", *(f"--{key}={value}" for key, value in settings.items())]

    def start(self):
        """The process, as soon as it has made the run folder: what comes before is the start of Python."""
        command = [sys.executable, "-m", "recbole_perpeft", *self.words]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not self.folder.exists() and process.poll() is None:
            time.sleep(0.001)
        return process

    def finish(self):
        """Resume, or start anew if it was killed before its settings were written."""
        began = (self.folder / "config.yaml").exists()
        assert main([f"--resume={self.folder}"] if began else self.words) == 0

    def numbers(self):
        """What must not depend on interruptions: test metrics, ranks, record of the epochs, tensors of the model."""
        metrics = json.loads((self.folder / "result.json").read_text())
        epochs = pd.read_csv(self.folder / "metrics.csv").drop(columns=["train_seconds", "valid_seconds"])
        ranks = pd.read_parquet(self.folder / "test_ranks.parquet")
        tensors = torch.load(self.folder / "best.pth", weights_only=True)["state_dict"]
        return metrics["test_result"], epochs, ranks, tensors

    def leftovers(self):
        files = [path for folder in (self.folder, self.cache) for path in folder.rglob("*")]
        return [path for path in files if path.name.startswith(".") or path.suffix in (".draft", ".partial")]


@pytest.fixture(scope="module")
def undisturbed(tiny_aspects, tmp_path_factory):
    """A run that is left alone, and its seconds from the making of the folder to the writing of the result."""
    run = Run(tiny_aspects, tmp_path_factory.mktemp("undisturbed"))
    process = run.start()
    began = time.time()
    assert process.wait() == 0
    return run, (run.folder / "result.json").stat().st_mtime - began


def moments():
    """Shares of a run's duration, one at random in each third of it."""
    draw = random.Random(SEED)
    return [(place + draw.random()) / N_KILLS for place in range(N_KILLS)]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the platform has no SIGKILL")
@pytest.mark.parametrize("share", moments(), ids="{:.2f}".format)
def test_a_killed_run_ends_with_the_numbers_of_an_undisturbed_one(undisturbed, tiny_aspects, tmp_path, share):
    whole, seconds = undisturbed
    run = Run(tiny_aspects, tmp_path)
    process = run.start()
    time.sleep(share * seconds)
    process.kill()
    process.wait()
    run.finish()
    (test_result, epochs, ranks, tensors), expected = run.numbers(), whole.numbers()
    assert test_result == expected[0]
    pd.testing.assert_frame_equal(epochs, expected[1])
    pd.testing.assert_frame_equal(ranks, expected[2])
    assert tensors.keys() == expected[3].keys()
    for name, tensor in expected[3].items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(tensors[name], tensor), name
    assert not run.leftovers()
