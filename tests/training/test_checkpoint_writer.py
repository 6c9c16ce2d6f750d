import threading

import numpy as np
import pytest
import torch
from scipy import sparse

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.training import checkpoint as module
from recbole_perpeft.training.checkpoint import CheckpointWriter, copied, save_checkpoint

PATIENCE = 60  # seconds, for what takes none


@pytest.fixture
def gate(monkeypatch):
    """Files are written only when it is open."""
    opened = threading.Event()

    def save(path, content):
        assert opened.wait(PATIENCE), "nobody has opened the gate: the caller waits for the file"
        save_checkpoint(path, content)

    monkeypatch.setattr(module, "save_checkpoint", save)
    return opened


def _value(path):
    return torch.load(path, weights_only=True)["a"].tolist()


def test_what_is_written_is_what_was_there_when_it_was_asked_for(tmp_path, gate):
    value = torch.zeros(3)
    with CheckpointWriter() as writer:
        writer.write(tmp_path / "first.pth", {"a": value})
        value += 1
        writer.write(tmp_path / "second.pth", {"a": value})
        value += 1
        assert not list(tmp_path.iterdir())
        gate.set()
        writer.wait()
        assert _value(tmp_path / "first.pth") == [0, 0, 0] and _value(tmp_path / "second.pth") == [1, 1, 1]


def test_what_is_to_be_done_after_a_checkpoint_finds_it(tmp_path, gate):
    found = []
    with CheckpointWriter() as writer:
        writer.write(tmp_path / "a.pth", {"a": torch.zeros(1)})
        writer.call(lambda: found.append((tmp_path / "a.pth").exists()))
        assert not found
        gate.set()
    assert found == [True]
    writer.call(lambda: found.append(True))
    assert found == [True, True]


def test_outside_of_a_block_a_file_is_there_at_once(tmp_path):
    writer = CheckpointWriter()
    with writer:
        writer.write(tmp_path / "a.pth", {"a": torch.zeros(1)})
    assert (tmp_path / "a.pth").exists(), "the block has waited"
    writer.write(tmp_path / "b.pth", {"a": torch.ones(1)})
    assert _value(tmp_path / "b.pth") == [1]


def test_what_the_disk_refuses_is_told_at_the_end_of_the_block_and_what_follows_is_not_written(tmp_path):
    nowhere, writer = tmp_path / "missing" / "a.pth", CheckpointWriter()
    with pytest.raises(PerPEFTError, match="cannot write"), writer:
        writer.write(nowhere, {"a": torch.zeros(1)})
        writer.write(tmp_path / "later.pth", {"a": torch.zeros(1)})
        writer.write(nowhere, {"a": torch.zeros(1)})
    assert not list(tmp_path.iterdir())
    with writer:
        writer.write(tmp_path / "a.pth", {"a": torch.zeros(1)})
    assert (tmp_path / "a.pth").exists(), "nothing is left of the errors"


def test_what_the_disk_refuses_hides_no_other_error(tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt), CheckpointWriter() as writer:
        writer.write(tmp_path / "missing" / "a.pth", {"a": torch.zeros(1)})
        raise KeyboardInterrupt
    assert "cannot write" in caplog.text
    caplog.clear()
    with pytest.raises(PerPEFTError, match="cannot write"), CheckpointWriter() as writer:
        writer.write(tmp_path / "missing" / "a.pth", {"a": torch.zeros(1)})
        writer.wait()
    assert not caplog.text, "nothing is told twice"


def test_a_training_that_is_interrupted_while_it_waits_leaves_no_thread_behind(tmp_path, gate, monkeypatch):
    writer = CheckpointWriter()

    def interrupted():
        gate.set()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), writer:
        for name in "abc":
            writer.write(tmp_path / f"{name}.pth", {"a": torch.zeros(1)})
        monkeypatch.setattr(writer, "wait", interrupted)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoints")]
    monkeypatch.undo()
    with writer:
        writer.write(tmp_path / "a.pth", {"a": torch.ones(1)})
    assert _value(tmp_path / "a.pth") == [1]


def test_a_copy_shares_what_was_shared_and_nothing_else():
    tied, state = torch.arange(6.0).view(2, 3), {"moments": [torch.zeros(2), (torch.ones(2), "text")]}
    found = copied({"a": tied, "b": tied, "turned": tied.T, "empty": [torch.empty(0), torch.empty(0, 4)]} | state)
    assert found["a"] is found["b"] and found["turned"].equal(tied.T)
    assert [part.shape for part in found["empty"]] == [(0,), (0, 4)]
    array, matrix, graph = np.zeros(2), sparse.csr_matrix(np.eye(2)), torch.eye(2).to_sparse()
    apart = copied({"array": array, "matrix": matrix, "graph": graph})
    array += 1
    matrix.data += 1
    assert apart["array"].sum() == 0 and apart["matrix"].sum() == 2 and apart["graph"].to_dense().equal(torch.eye(2))
    tied.zero_()
    state["moments"][0].fill_(7)
    assert found["a"].sum() == 15 and found["moments"][0].sum() == 0 and found["moments"][1][1] == "text"
