"""Losses by name, and what they get of a batch."""

import importlib.util

import pytest
import torch

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.nn.losses import LOSSES, NextItems, loss_from
from recbole_perpeft.nn.users.sasrec import left_pad
from recbole_perpeft.runs.run import run

OWN_LOSS = """
from dataclasses import dataclass

from recbole_perpeft.core.settings import Settings, setting
from recbole_perpeft.data.loader import NegativeSettings
from recbole_perpeft.data.sampler import Draws
from recbole_perpeft.nn.losses import NextItems, register_loss


@register_loss("hinge")
@dataclass(frozen=True)
class HingeLoss(Settings):
    hinge_margin: float = setting(1.0, "How much better an item is than what is drawn.", above=0)
    draws = Draws(negatives=1)
    settings_classes = (NegativeSettings,)

    def __call__(self, batch: NextItems):
        assert self.hinge_margin == 0.5
        positive, negative = batch.vectors_of(batch.targets), batch.vectors_of(batch.negatives[..., 0])
        margins = self.hinge_margin - (batch.hidden * (positive - negative)).sum(-1)
        return margins[batch.targets != 0].relu().mean()
"""


@pytest.fixture
def own_names(monkeypatch):
    """Names that a test registers are forgotten after it."""
    monkeypatch.setattr(LOSSES, "_added", {})


def test_a_loss_of_a_users_own_is_one_file(aspects_settings, tmp_path, own_names):
    path = tmp_path / "hinge.py"
    path.write_text(OWN_LOSS, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("hinge", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert "hinge" in LOSSES.names()
    settings = aspects_settings | {"peft_type": "none", "loss_type": "hinge", "hinge_margin": 0.5, "epochs": 1}
    assert run("GlobalPEFT", config_dict=settings)["test_result"]


def test_an_unknown_name_is_told_all_names():
    with pytest.raises(PerPEFTError, match="must be one of bce, gbce, in_batch, sampled_softmax, softmax$"):
        loss_from({"loss_type": "hinge"})


def test_a_loss_finds_the_vectors_of_items():
    items = torch.tensor([0, 3, 4, 9])
    vectors = torch.arange(8.0).view(4, 2)
    ids = torch.tensor([[9, 0], [3, 3]])
    batch = NextItems(vectors, ids, ids, items, vectors, None, 10, ids.unsqueeze(-1))
    assert torch.equal(batch.vectors_of(ids), vectors[torch.tensor([[3, 0], [1, 1]])])


def test_several_draws_a_slot_are_padded_as_one_is():
    rows, length = torch.randint(1, 9, (3, 4)), torch.tensor([4, 2, 1])
    several = torch.stack([rows, 10 * rows], dim=-1)
    expected = torch.stack([left_pad(one, length) for one in (rows, 10 * rows)], dim=-1)
    assert torch.equal(left_pad(several, length), expected)
