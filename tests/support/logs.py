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


def rows_of(dataset, part):
    """(user, items before, target) of the rows of a part, sorted, in tokens."""
    rows = part.inter_feat.interaction
    if "item_id" in rows:
        histories, targets = rows["item_id_list"], rows["item_id"]
        lengths = rows["item_length"].tolist()
        cut = [(history[:length], target) for history, length, target in zip(histories, lengths, targets, strict=True)]
        users = rows["user_id"]
    else:  # rows of several targets, a row of this test is as wide as a history
        cut, users = [], []
        for user, inputs, targets in zip(rows["user_id"], rows["item_id_list"], rows["pos_item_id_list"], strict=True):
            cut += [(inputs[: at + 1], target) for at, target in enumerate(targets) if target]
            users += [user] * int((targets > 0).sum())
    return sorted(
        (
            str(dataset.id2token("user_id", int(user))),
            tuple(str(dataset.id2token("item_id", int(item))) for item in history),
            str(dataset.id2token("item_id", int(target))),
        )
        for user, (history, target) in zip(users, cut, strict=True)
    )
