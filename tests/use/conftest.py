"""Short runs on a small log, of models of every kind, and a model with groups that makes lists."""

import pytest
from conftest import write_toy_data

from recbole_perpeft.data.history import union_of
from recbole_perpeft.runs.run import run
from recbole_perpeft.use.recommend import Recommender


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory):
    """Gives the folder of a run of one epoch; each model is trained once."""
    folder = tmp_path_factory.mktemp("toy")
    write_toy_data(folder)
    settings = {
        "dataset": "toy",
        "data_path": str(folder),
        "runs_folder": str(folder / "runs"),
        "show_progress": False,
        "epochs": 1,
        "use_gpu": False,
        "eval_batch_size": 512,
    }
    runs = {}

    def make(model):
        if model not in runs:
            runs[model] = run(model, config_dict=settings)["run_folder"]
        return runs[model]

    make.data = folder
    return make


@pytest.fixture
def recommender(prepare):
    """Of two groups, whose modules differ."""
    prepared = prepare()
    prepared.personalise(2)
    parts = [part._dataset for part in (prepared.train_data, prepared.valid_data, prepared.test_data)]
    return Recommender(prepared.model, prepared.dataset, union_of(parts))
