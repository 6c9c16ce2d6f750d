import torch
from torch.nn import functional

from recbole_perpeft.nn.projector import Projector


def test_layers_are_those_of_the_paper():
    torch.manual_seed(0)
    projector = Projector(6, 4)
    content = torch.randn(5, 6)
    first, _, _, last, _ = projector
    hidden = functional.relu(functional.layer_norm(first(content), (8,), eps=1e-8))
    torch.testing.assert_close(projector(content), functional.layer_norm(last(hidden), (4,), eps=1e-8))


def test_size_is_that_of_the_paper():
    assert sum(parameter.numel() for parameter in Projector(1024, 32).parameters()) == 67_872


def test_pad_becomes_a_constant_that_is_not_zero():
    vectors = Projector(6, 4)(torch.zeros(2, 6))
    assert torch.equal(vectors[0], vectors[1])
    assert vectors.abs().sum() > 0
