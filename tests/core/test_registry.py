"""Entries by name."""

import pytest

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.registry import Registry


@pytest.fixture
def registry():
    return Registry("loss_type", {"fraction": "fractions:Fraction"})


def test_an_entry_is_imported_when_it_is_asked_for(registry):
    from fractions import Fraction

    assert registry.get("fraction") is Fraction


def test_an_added_entry_stands_beside_those_of_the_package(registry):
    @registry.register("mine")
    def mine():
        return 1

    assert registry.names() == ["fraction", "mine"]
    assert registry.get("mine") is mine and "mine" in registry and "yours" not in registry


def test_a_taken_name_is_refused(registry):
    registry.register("mine")(int)
    registry.register("mine")(int)
    for name, entry in (("fraction", int), ("mine", str)):
        with pytest.raises(PerPEFTError, match=f"loss_type: '{name}' is taken"):
            registry.register(name)(entry)


@pytest.mark.parametrize("name, hint", [("fractoin", "did you mean 'fraction'"), ("xyz", "choose one of fraction")])
def test_an_unknown_name_gets_a_hint(registry, name, hint):
    with pytest.raises(PerPEFTError, match=f"loss_type is '{name}', which does not exist: {hint}"):
        registry.get(name)
