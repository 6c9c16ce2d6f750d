"""Mutated files, and the functions that read them: they give something, or tell one clear error.

Of every kind a few, in every run of the tests; `test_campaign.py` has the programs around them.
"""

import json
import shutil
import tracemalloc
from random import Random

import numpy as np
import pandas as pd
import pytest
import yaml

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.yaml_values import read_yaml
from recbole_perpeft.data.content import ItemContent
from recbole_perpeft.data.files.atomic_table import TableReader, read_table
from recbole_perpeft.data.files.tables import table_columns, table_rows
from recbole_perpeft.data.photos.decode import DamagedImageError, decode_image
from recbole_perpeft.data.photos.images import read_image_file
from recbole_perpeft.runs.record import RunRecord
from recbole_perpeft.studies.search.space import read_space
from recbole_perpeft.training.checkpoint import load_checkpoint, save_checkpoint
from support.attack.attacks import SETTINGS, SPACE
from support.attack.kinds import mutate_file
from support.finished_run import write_run

N_INPUTS = 5  # of each kind
MOST_BYTES = 300_000_000


def log_of_shop(folder, data):
    path = shutil.copy(data / "aspects.inter", folder / "aspects.inter")
    return path, lambda: read_table(TableReader(path, lambda name: True, "\t"))


def items_of_shop(folder, data):
    path = shutil.copy(data / "aspects.item", folder / "aspects.item")
    return path, lambda: ItemContent.load(folder, "aspects", [], fields=["title"])


def photo(folder, data):
    path = shutil.copy(sorted((data / "images").iterdir())[0], folder / "photo.png")
    return path, lambda: decode_image(read_image_file(path))


def settings(folder, data):
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(SETTINGS, sort_keys=False))
    return path, lambda: read_yaml(path)


def space(folder, data):
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(SPACE, sort_keys=False))
    return path, lambda: read_space(path)


def checkpoint(folder, data):
    path = folder / "best.pth"
    save_checkpoint(path, {"model": "BPR", "state_dict": {"x": np.arange(3.0)}, "extra": {}, "epoch": 1})
    return path, lambda: load_checkpoint(path)


def record(name):
    def of_run(folder, data):
        write_run(folder / "run", ["i1", "i2"], np.array([1, 3]))
        return folder / "run" / name, lambda: RunRecord(folder / "run").check()

    return of_run


def table(suffix):
    def of_orders(folder, data):
        path = folder / f"orders{suffix}"
        orders = pd.DataFrame({"user_id": ["a", "b"] * 20, "item_id": range(40), "timestamp": range(40)})
        if suffix == ".parquet":
            orders.to_parquet(path)
        elif suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in orders.to_dict("records")))
        else:
            orders.to_csv(path, index=False)
        return path, lambda: (table_columns(path), list(table_rows(path, ["user_id", "item_id"])))

    return of_orders


KINDS = {
    "log": log_of_shop,
    "items": items_of_shop,
    "photo": photo,
    "settings": settings,
    "space": space,
    "checkpoint": checkpoint,
    **{name: record(name) for name in ("result.json", "metrics.csv", "test_ranks.parquet", "environment.json")},
    **{f"table{suffix}": table(suffix) for suffix in (".csv", ".jsonl", ".parquet")},
}


@pytest.mark.parametrize("number", range(N_INPUTS))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_a_mutated_file_is_read_or_refused_in_one_clear_error(tiny_aspects, tmp_path, kind, number):
    path, read = KINDS[kind](tmp_path, tiny_aspects)
    what = mutate_file(Random(f"{kind} {number}"), path)
    tracemalloc.start()
    try:
        read()
    except DamagedImageError as error:  # whoever reads photos names the file
        assert str(error), what
    except PerPEFTError as error:
        assert path.name in str(error) and "\n" not in str(error), what
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MOST_BYTES, what
