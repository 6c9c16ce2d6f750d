"""Ids and names of others become paths only inside the folders that they are meant for."""

import json

import numpy as np
import pytest

from recbole_perpeft.convert.conversion import ConversionSettings, convert
from recbole_perpeft.convert.filters import FilterSettings
from recbole_perpeft.convert.sources.perpeft import PerPEFTSource
from recbole_perpeft.convert.sources.vip5 import VIP5Source
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.runs.config import Config

SETTINGS = ConversionSettings(filters=FilterSettings(), show_progress=False)


@pytest.fixture
def vip5(tmp_path):
    """Authors' data of one user and one item, whose id means a file of somebody else."""
    folder, secret = tmp_path / "toys", tmp_path / "secret"
    folder.mkdir()
    secret.mkdir()
    np.save(secret / "x.npy", np.ones(3, dtype=np.float32))
    maps = {"id2user": {"1": "U"}, "id2item": {"1": "../../secret/x"}}
    (folder / "datamaps.json").write_text(json.dumps(maps), encoding="utf-8")
    (folder / "sequential_data.txt").write_text("1 1 1 1\n", encoding="utf-8")
    (tmp_path / "features" / "toys").mkdir(parents=True)
    return VIP5Source(folder, tmp_path / "features" / "toys")


def test_features_of_an_item_stay_in_their_folder(vip5, tmp_path):
    with pytest.raises(PerPEFTError, match=r"item '../../secret/x': the path .* leaves the folder .*features/toys"):
        convert(vip5, tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["..", "a\x1b[31m", "a\nb"])
def test_a_data_set_has_a_plain_name(vip5, tmp_path, name):
    with pytest.raises(PerPEFTError, match="cannot be a name") as caught:
        convert(vip5, tmp_path / "x" / name, SETTINGS)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("name", ["../shop", "a/b", "a\\b", "..", "a\x07"])
def test_settings_name_one_folder(name, tmp_path):
    with pytest.raises(PerPEFTError, match="^dataset: .* cannot be a name"):
        Config("SASRec", name)
    with pytest.raises(PerPEFTError, match="^--set: .* cannot be a name"):
        PerPEFTSource(tmp_path, name)
