"""What follows from a kept log is made once, and again where its file is damaged or of something else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.core.whole import alone
from recbole_perpeft.data.files.beside import PREFIX, Beside, sums_of

MADE = np.arange(9, dtype=np.int32)


def refuse():
    raise AssertionError("it is made again")


def test_it_is_made_once(tmp_path):
    beside = Beside(tmp_path, "text")
    for array in (MADE, np.arange(3), np.empty(0, np.uint8)):
        made = beside.array("order", "about", lambda array=array: array)
        mapped = beside.array("order", "about", refuse)
        assert mapped.dtype == made.dtype == array.dtype and mapped.tolist() == made.tolist() == array.tolist()
        beside = Beside(tmp_path, beside.text + "!")
    assert beside.text_of("hash", 1, lambda: "é") == beside.text_of("hash", 1, refuse) == "é"


@pytest.mark.parametrize("other", [(Beside, "other", "about"), (Beside, "text", "other")])
def test_of_another_log_or_state_it_is_made_again(tmp_path, other):
    Beside(tmp_path, "text").array("order", "about", lambda: MADE)
    _, text, about = other
    assert Beside(tmp_path, text).array("order", about, lambda: MADE + 1).tolist() == (MADE + 1).tolist()
    assert Beside(tmp_path, text).array("order", about, refuse).tolist() == (MADE + 1).tolist()


@given(data=st.data())
@settings(max_examples=40)
def test_a_damaged_file_is_made_again(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "beside"
    folder.mkdir(exist_ok=True)
    beside, file = Beside(folder, "text"), folder / f"{PREFIX}order"
    beside.array("order", "about", lambda: MADE)
    content = bytearray(file.read_bytes())
    way = data.draw(st.sampled_from(["cut", "changed", "longer", "other"]))
    place = data.draw(st.integers(0, len(content) - 1))
    if way == "changed":
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    elif way == "cut":
        del content[place:]
    else:
        content = content + b"1" if way == "longer" else data.draw(st.binary(max_size=300))
    file.write_bytes(content)
    assert beside.array("order", "about", lambda: MADE).tolist() == MADE.tolist()
    assert beside.array("order", "about", refuse).tolist() == MADE.tolist()


def test_where_it_cannot_be_written_it_is_made_by_every_run(tmp_path):
    gone = Beside(tmp_path / "file" / "folder", "text")
    (tmp_path / "file").touch()
    beside = Beside(tmp_path, "text")
    with alone(tmp_path / f"{PREFIX}order"):  # another process makes it
        assert beside.array("order", "about", lambda: MADE) is MADE
    assert gone.array("order", "about", lambda: MADE) is MADE
    assert not (tmp_path / f"{PREFIX}order").exists()


def test_states_of_a_log_are_told_apart():
    columns = {"user": np.array([1, 2], dtype=np.int32), "time": np.array([1.0, 2.0])}
    states = [
        columns,
        {"user": columns["user"]},
        {"user": columns["user"][::-1], "time": columns["time"]},
        {"user": columns["user"], "time": columns["time"] + 1},
        {"user": columns["user"].astype(np.int64), "time": columns["time"]},
        {"item": columns["user"], "time": columns["time"]},
    ]
    assert len({repr(sums_of(state)) for state in states}) == len(states)
