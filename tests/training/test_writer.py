import threading

import pytest
import torch

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.training import writer as module
from recbole_perpeft.training.checkpoint import copied, save_checkpoint
from recbole_perpeft.training.writer import CheckpointWriter

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


def test_a_third_checkpoint_waits_for_the_first(tmp_path, gate):
    done = threading.Event()

    def write_three():
        with CheckpointWriter() as writer:
            for number in range(3):
                writer.write(tmp_path / f"{number}.pth", {"a": torch.full((2,), number)})
            done.set()

    thread = threading.Thread(target=write_three)
    thread.start()
    assert not done.wait(0.3)
    gate.set()
    thread.join(PATIENCE)
    assert done.is_set() and [_value(tmp_path / f"{number}.pth")[0] for number in range(3)] == [0, 1, 2]


def test_outside_of_a_block_a_file_is_there_at_once(tmp_path):
    writer = CheckpointWriter()
    with writer:
        writer.write(tmp_path / "a.pth", {"a": torch.zeros(1)})
    assert (tmp_path / "a.pth").exists(), "the block has waited"
    writer.write(tmp_path / "b.pth", {"a": torch.ones(1)})
    assert _value(tmp_path / "b.pth") == [1]


def test_what_the_disk_refuses_is_told_at_the_end_of_the_block_and_hides_no_other_error(tmp_path):
    nowhere = tmp_path / "missing" / "a.pth"
    with pytest.raises(PerPEFTError, match="cannot write"), CheckpointWriter() as writer:
        writer.write(nowhere, {"a": torch.zeros(1)})
    with pytest.raises(KeyboardInterrupt), CheckpointWriter() as writer:
        writer.write(nowhere, {"a": torch.zeros(1)})
        raise KeyboardInterrupt
    with CheckpointWriter() as writer:  # nothing is left of it
        writer.write(tmp_path / "a.pth", {"a": torch.zeros(1)})


def test_a_copy_shares_what_was_shared_and_nothing_else():
    tied, state = torch.arange(6.0).view(2, 3), {"moments": [torch.zeros(2), (torch.ones(2), "text")]}
    found = copied({"a": tied, "b": tied, "turned": tied.T, "empty": [torch.empty(0), torch.empty(0, 4)]} | state)
    assert found["a"] is found["b"] and found["turned"].equal(tied.T)
    assert [part.shape for part in found["empty"]] == [(0,), (0, 4)]
    tied.zero_()
    state["moments"][0].fill_(7)
    assert found["a"].sum() == 15 and found["moments"][0].sum() == 0 and found["moments"][1][1] == "text"
