"""Logs of interactions for the tests of data sets and loaders."""

import pytest

from recbole_perpeft.runs.config import Config


class LogFolder:
    """A folder with one small data set, `log`, that a test may overwrite as often as it likes."""

    def __init__(self, path):
        self.path = path
        (path / "log").mkdir()

    def write(self, rows, header="user_id:token\titem_id:token\ttimestamp:float", part=""):
        lines = [header] + ["\t".join(map(str, row)) for row in rows]
        (self.path / "log" / f"log{part}.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def config(self, model="SASRec", **settings):
        defaults = {"data_path": str(self.path), "MAX_ITEM_LIST_LENGTH": 3, "train_neg_sample_args": None}
        return Config(model=model, dataset="log", config_dict=defaults | settings)


@pytest.fixture(scope="module")
def log_folder(tmp_path_factory):
    return LogFolder(tmp_path_factory.mktemp("logs"))
