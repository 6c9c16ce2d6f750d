"""What is exported opens without this package."""

import errno
import os

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel

from recbole_perpeft.cli.main import main
from recbole_perpeft.pretrained.tower import Backbone
from recbole_perpeft.runs.run import load, run
from recbole_perpeft.use import export as export_module
from support.plain_peft import vectors_by_peft_alone

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

COMMON = ["README.md", "id_vectors.safetensors", "items.parquet", "projectors.safetensors", "vectors"]


@pytest.fixture(autouse=True)
def no_user_encoder(monkeypatch):
    """Its export takes seconds; `test_parts.py` has one."""
    monkeypatch.setattr(export_module, "write_user_encoder", lambda *_: None)


@pytest.fixture
def trained(aspects_settings, tmp_path):
    """The folder of a run; weights have moved away from where adapters begin."""

    def make(model="PerPEFT", **settings):
        defaults = {"epochs_global": 1, "epochs": 1, "min_group_size": 1, "learning_rate": 0.01}
        run(model, config_dict=aspects_settings | defaults | settings | {"run_folder": str(tmp_path / "run")})
        return tmp_path / "run"

    return make


@pytest.mark.parametrize("peft_type", ["lora", "ia3"])
def test_adapters_give_the_same_content_vectors_to_plain_peft(trained, tmp_path, small_aspects, peft_type, capsys):
    folder = trained(peft_type=peft_type, peft_config={})
    assert main(["export", f"--run={folder}", f"--output={tmp_path / 'adapters'}"]) == 0
    _, model, dataset, *_ = load(folder)
    names = ["global", *(f"group-{group}" for group in range(model.n_groups))]
    assert model.n_groups > 1
    written = [
        str(tmp_path / "adapters" / name) for name in sorted([*names, *COMMON, "groups.parquet", "users.parquet"])
    ]
    assert capsys.readouterr().out.splitlines() == written
    items = torch.arange(1, 21)
    tokens = dataset.id2token(dataset.iid_field, items.numpy())
    found = []
    for name, group in zip(names, (None, *range(model.n_groups)), strict=True):
        with torch.no_grad():
            expected = model.item_encoder.content_encoder(items, group)
        found.append(vectors_by_peft_alone(tmp_path / "adapters" / name, tokens, small_aspects / "aspects"))
        torch.testing.assert_close(found[-1], expected, atol=1e-5, rtol=0)
    assert (found[1] - found[2]).abs().max() > 1e-4, "groups have learnt different things"


def test_each_tower_has_its_adapter(trained, tmp_path):
    towers = {"text_encoder": "aspects-clip", "image_encoder": "aspects-clip"}
    folder = trained("GlobalPEFT", **towers)
    assert main(["export", f"--run={folder}", f"--output={tmp_path / 'adapters'}"]) == 0
    content = load(folder)[1].eval().item_encoder.content_encoder
    for kind in ("text", "image"):
        encoder = content.towers[kind]
        plain = Backbone.from_pretrained("aspects-clip", kind)
        plain.model = PeftModel.from_pretrained(plain.model, tmp_path / "adapters" / "global" / kind).eval()
        inputs = encoder.source.batch(encoder.row_of_item[1:21])
        with torch.no_grad():
            found = plain.pooled_states((), plain.pooling, **inputs)[1]
            torch.testing.assert_close(found, encoder(torch.arange(1, 21), None), atol=1e-5, rtol=1e-5)


def test_users_and_groups_are_tables(trained, tmp_path):
    folder = trained()
    main(["export", "--run", str(folder / "best.pth"), "--output", str(tmp_path / "adapters")])
    _, model, dataset, *_ = load(folder)
    users = pd.read_parquet(tmp_path / "adapters" / "users.parquet")
    groups = pd.read_parquet(tmp_path / "adapters" / "groups.parquet")
    ids = dataset.token2id(dataset.uid_field, users["user_id"].tolist())
    assert sorted(ids) == list(range(1, model.n_users))
    assert model.user_group[torch.from_numpy(ids)].tolist() == users["group"].tolist()
    assert groups["n_users"].tolist() == users["group"].value_counts().sort_index().tolist()
    np.testing.assert_array_equal(np.stack(groups["centroid"]), model.group_centroids.numpy())


def test_a_model_without_groups_has_one_adapter(trained, tmp_path):
    assert main(["export", f"--run={trained('GlobalPEFT')}", f"--output={tmp_path / 'adapters'}"]) == 0
    assert {path.name for path in (tmp_path / "adapters").iterdir()} == {"global", *COMMON}


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("SASRec", {}, "run of SASRec"),
        ("GlobalPEFT", {"peft_type": "none", "peft_config": {}}, "GlobalPEFT with peft_type none"),
        ("GlobalPEFT", {"peft_type": "bitfit", "peft_config": {}}, "GlobalPEFT with peft_type bitfit"),
        ("GlobalPEFT", {"peft_type": "iisan", "peft_config": {"n_blocks": 2}}, "GlobalPEFT with peft_type iisan"),
    ],
)
def test_other_models_have_nothing_to_export(trained, tmp_path, capsys, model, settings, message):
    assert main(["export", f"--run={trained(model, **settings)}", f"--output={tmp_path / 'adapters'}"]) == 2
    error = capsys.readouterr().err
    assert message in error and "no adapters of peft" in error
    assert not (tmp_path / "adapters").exists()


def test_the_folder_appears_whole_or_not_at_all(trained, tmp_path, monkeypatch, capsys):
    words = ["export", f"--run={trained()}", f"--output={tmp_path / 'new' / 'adapters'}"]

    def disk_full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(pd.DataFrame, "to_parquet", disk_full)
        assert main(words) == 2
    assert "No space left" in capsys.readouterr().err
    assert not list((tmp_path / "new").iterdir())
    assert main(words) == 0
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
