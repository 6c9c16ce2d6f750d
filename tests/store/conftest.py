"""Fixtures of caches of hidden states."""

import pytest

from recbole_perpeft.store.encode import StateEncoder
from recbole_perpeft.store.states import HiddenStateSettings
from support import tiny_encoders as tiny
from support.state_caches import N_ITEMS


@pytest.fixture(scope="session")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    return {
        "bert": str(tiny.make_bert(folder / "bert")),
        "llama": str(tiny.make_llama(folder / "llama")),
        "vit": str(tiny.make_vit(folder / "vit")),
    }


@pytest.fixture
def shop(tmp_path):
    return tiny.write_shop(tmp_path / "shop", N_ITEMS)


@pytest.fixture
def bert(encoders):
    """Chunks of 16 items in batches of two."""
    return HiddenStateSettings(encoders["bert"], (0, 1, 3), max_length=8, dtype="float32", batch_size=2, device="cpu")


@pytest.fixture
def computed(monkeypatch):
    """Indexes of chunks that were computed, in order."""
    chunks = []
    original = StateEncoder._compute

    def record(encoder, inputs):
        chunks.append(inputs.chunk.index)
        return original(encoder, inputs)

    monkeypatch.setattr(StateEncoder, "_compute", record)
    return chunks
