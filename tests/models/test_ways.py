"""Ways of adapting by name, in PerPEFT, GlobalPEFT and MoRec alike."""

import numpy as np
import pytest
import torch

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.models.ways import WAYS, way_names
from recbole_perpeft.runs.run import load, run
from support.learning import check_that_a_run_learns

TEXT = {"text_encoder": "aspects-clip"}
TOWERS = TEXT | {"image_encoder": "aspects-clip"}
CASES = {
    "PerPEFT-bitfit": ("PerPEFT", {"peft_type": "bitfit"}),
    "PerPEFT-full": ("PerPEFT", {"peft_type": "full", "learning_rate": 1e-3, "epochs_global": 8}),
    "GlobalPEFT-adapter": ("GlobalPEFT", {"peft_type": "adapter", "peft_config": {"adapter_rank": 8}}),
    "MoRec-ia3": ("MoRec", {"adaptation": "ia3"}),
    "MoRec-iisan": ("MoRec", {"adaptation": "iisan", "peft_config": {"n_blocks": 2}}),
    "PerPEFT-towers": ("PerPEFT", TOWERS),
    "PerPEFT-text": ("PerPEFT", TEXT | {"peft_type": "adapter"}),
    "PerPEFT-towers-iisan": ("PerPEFT", TOWERS | {"peft_type": "iisan", "peft_config": {"n_blocks": 2}}),
    "GlobalPEFT-text-none": ("GlobalPEFT", TEXT | {"peft_type": "none"}),
}


def test_names():
    assert {"adapter", "bitfit", "frozen", "full", "ia3", "iisan", "lora", "none", "vera"} <= set(way_names())
    assert WAYS.get("frozen") is WAYS.get("none")


@pytest.mark.parametrize("case", CASES)
def test_a_run_learns_and_its_checkpoint_gives_the_same_numbers(aspects_settings, case):
    name, settings = CASES[case]
    rates = {"learning_rate": 3e-3} | ({"param_groups": "uniform"} if name == "MoRec" else {})
    config = aspects_settings | {"epochs": 8, "epochs_global": 4, "topk": [10]} | rates | settings
    check_that_a_run_learns(name, config)


def test_a_way_of_a_users_own(prepare, tmp_path, monkeypatch):
    (tmp_path / "norms_way.py").write_text(
        "from recbole_perpeft.models.ways import WAYS\n\n"
        "def train_norms(encoder):\n"
        "    for name, parameter in encoder.named_parameters():\n"
        "        parameter.requires_grad_('norm' in name)\n\n"
        "@WAYS.register('norms')\n"
        "def norms(builder, options):\n"
        "    return builder.adapted(train_norms)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(WAYS, "_added", dict(WAYS._added))
    __import__("norms_way")
    bank = prepare("PerPEFT", peft_type="norms").personalise().item_encoder.content_encoder.bank
    assert bank.modules_of_groups["2"] and all("norm" in name for name in bank.modules_of_groups["2"])
    backbones = prepare("MoRec", adaptation="norms").model.item_encoder.content_encoder.bank.backbones
    trained = [name for name, parameter in backbones.named_parameters() if parameter.requires_grad]
    assert trained and all("norm" in name for name in trained)


def test_what_the_user_gives_replaces_a_default_of_the_other_kind(prepare):
    config = prepare("PerPEFT", **TEXT).config
    assert config["foundation_model"] is None and config["text_encoder"] == "aspects-clip"
    with pytest.raises(PerPEFTError, match="leave out foundation_model or text_encoder and image_encoder"):
        prepare("PerPEFT", **TOWERS, foundation_model="aspects-clip")


def test_ids_alone(aspects_settings, prepare):
    config = aspects_settings | {"epochs": 8, "topk": [10], "learning_rate": 3e-3, "peft_type": "ids"}
    result = run("GlobalPEFT", config_dict=config | {"foundation_model": "no/such-model"})
    losses = np.genfromtxt(f"{result['run_folder']}/metrics.csv", delimiter=",", names=True, usecols=[2])["train_loss"]
    assert losses[-1] < losses[0]
    model = load(result["run_folder"])[1]
    assert torch.equal(model.catalogue(None), model.item_encoder.id_embedding.weight)
    with pytest.raises(PerPEFTError, match="ids leaves groups nothing of their own"):
        prepare("PerPEFT", peft_type="ids")
    with pytest.raises(PerPEFTError, match="choose GlobalPEFT with peft_type: ids"):
        prepare("MoRec", adaptation="ids")
