"""The authors' hidden states as caches: a run finds them, in its own order of items."""

import os
import shutil

import numpy as np
import pytest
import torch

from recbole_perpeft.cli.main import main
from recbole_perpeft.convert.sources.perpeft_states import import_states, load_states
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.content import IMAGE, TITLE, ItemContent
from recbole_perpeft.pretrained.processor import Processor
from recbole_perpeft.store.encode import StateEncoder
from recbole_perpeft.store.states import HiddenStateCache, HiddenStateSettings

MODEL = "aspects-clip"


@pytest.fixture
def content(tiny_aspects):
    return ItemContent.load(tiny_aspects, "aspects", ())


def settings(dtype="float32"):
    """Of a run with all blocks."""
    length = Processor.from_pretrained(MODEL).text_length
    return HiddenStateSettings(MODEL, (0, 1, 2), max_length=length, dtype=dtype)


@pytest.fixture
def computed(content, tmp_path):
    """Caches that were computed, titles first."""
    return [
        HiddenStateCache.open_or_build(content, field, settings(), tmp_path / "computed", show_progress=False)
        for field in (TITLE, IMAGE)
    ]


@pytest.fixture
def states_file(content, computed, tmp_path):
    """Their states as the authors keep them, in another order and with an item more."""
    n = len(content)
    order = torch.from_numpy(np.random.default_rng(0).permutation(n))
    texts, images = (cache.states(order) for cache in computed)
    tokens = [content.tokens[row] for row in order] + ["unknown"]
    path = tmp_path / "toys_preX.pt"
    torch.save((torch.cat([images, images[:1]]), torch.cat([texts, texts[:1]]), tokens), path)
    return path


def test_a_run_finds_the_states(content, computed, states_file, tmp_path, monkeypatch):
    import_states(states_file, content, tmp_path / "cache", MODEL, "float32", show_progress=False)

    def fail(*_):
        raise AssertionError("a run computes states")

    monkeypatch.setattr(StateEncoder, "__init__", fail)
    rows = torch.tensor([3, 0, -1, 7])
    for field, theirs in zip((TITLE, IMAGE), computed, strict=True):
        ours = HiddenStateCache.open_or_build(content, field, settings(), tmp_path / "cache", show_progress=False)
        assert torch.equal(ours.states(rows), theirs.states(rows))
        assert torch.allclose(ours.final(rows), theirs.final(rows), atol=1e-6)
        assert ours.fingerprint == theirs.fingerprint


def test_given_states_are_not_mixed_with_computed_ones(content, states_file, tmp_path):
    import_states(states_file, content, tmp_path / "cache", MODEL, "float32", show_progress=False)
    content.texts[TITLE][2] = "another title"
    with pytest.raises(PerPEFTError, match="taken in from a file, and others would not go with them"):
        HiddenStateCache.open_or_build(content, TITLE, settings(), tmp_path / "cache", show_progress=False)
    ours, _ = import_states(states_file, content, tmp_path / "cache", MODEL, "float32", show_progress=False)
    shutil.rmtree(ours.folder)
    HiddenStateCache.open_or_build(content, TITLE, settings(), tmp_path / "cache", show_progress=False)


def test_the_command_line(content, states_file, tmp_path, capsys, tiny_aspects):
    flags = [
        f"--states={states_file}", "--dataset=aspects", f"--data_path={tiny_aspects.parent}",
        f"--cache_folder={tmp_path / 'cache'}", f"--foundation_model={MODEL}",
    ]  # fmt: skip
    assert main(["cache", *flags]) == 0
    assert f"{len(content)} items, states 0, 1, 2" in capsys.readouterr().out
    assert main(["cache", *flags, "--states=nothing.pt"]) == 2
    assert "nothing.pt" in capsys.readouterr().err


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_file_of_states_cannot_run_anything(tmp_path):
    torch.save((torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), [Attack(tmp_path / "made")]), tmp_path / "x.pt")
    with pytest.raises(PerPEFTError, match=r"x\.pt: holds more than tensors"):
        load_states(tmp_path / "x.pt")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({}, "does not hold states of images"),
        ((torch.zeros(2, 7, 3), torch.zeros(2, 7, 3), [1, 2]), "not a list of item ids"),
        ((torch.zeros(2, 7, 3), torch.zeros(1, 7, 3), ["a", "b"]), "not of the shape"),
        ((torch.zeros(2, 7, 3), torch.zeros(2, 7), ["a", "b"]), "not of the shape"),
        ((torch.zeros(2, 7, 3), torch.zeros(2, 7, 3), ["a", "a"]), "occurs twice"),
    ],
)
def test_other_contents_are_errors(tmp_path, parts, problem):
    torch.save(parts, tmp_path / "x.pt")
    with pytest.raises(PerPEFTError, match=rf"x\.pt: .*{problem}"):
        load_states(tmp_path / "x.pt")


def test_states_of_other_items_or_models_are_errors(content, tmp_path):
    def save(width, tokens, value=0.0):
        n = len(tokens)
        torch.save((torch.full((n, 3, width), value), torch.full((n, 3, width), value), tokens), tmp_path / "x.pt")
        return tmp_path / "x.pt", content, tmp_path / "cache", MODEL, "float32", False

    with pytest.raises(PerPEFTError, match="has no states of .* is it of another set"):
        import_states(*save(48, ["other"]))
    with pytest.raises(PerPEFTError, match="Name the model that they come from"):
        import_states(*save(47, content.tokens))
    with pytest.raises(PerPEFTError, match="not finite"):
        import_states(*save(48, content.tokens, float("nan")))
