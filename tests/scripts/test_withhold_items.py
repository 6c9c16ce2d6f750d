"""The program that withholds items from training."""

import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import recbole_perpeft
from recbole_perpeft.core.errors import PerPEFTError

program = runpy.run_path(str(Path(recbole_perpeft.__path__[0]).parent / "scripts" / "withhold_items.py"))
COLUMNS = ["user_id:token", "item_id:token", "timestamp:float"]


@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, 20)), min_size=1, max_size=60),
    share=st.sampled_from([0.1, 0.3, 0.6]),
)
@settings(max_examples=50)
def test_drawn_items_stay_only_where_they_are_the_last_of_a_user(rows, share):
    log = pd.DataFrame(rows, columns=COLUMNS).astype(str)
    kept = program["withheld"](log, share, seed=1)
    newest = {}
    for index, (user, _, time) in enumerate(rows):
        if user not in newest or time >= rows[newest[user]][2]:
            newest[user] = index
    items = np.sort(log["item_id:token"].unique())
    drawn = set(np.random.default_rng(1).choice(items, round(share * len(items)), replace=False))
    expected = [i for i, (_, item, _) in enumerate(rows) if str(item) not in drawn or i in newest.values()]
    assert kept.index.tolist() == expected


def test_a_data_set_is_written_whole_with_its_content(tmp_path, capsys):
    source = tmp_path / "films"
    (source / "images").mkdir(parents=True)
    (source / "images" / "1.jpg").write_bytes(b"photo")
    (source / "films.item").write_text("item_id:token\n1\n")
    (source / "films.inter").write_text("\t".join(COLUMNS) + '\n7\t1\t0\n7\t2\t1\n8\t1\t5\n8\t"3\t6\n')
    flags = ["--data_path", str(tmp_path), "--dataset=films", "--output", str(tmp_path / "cold"), "--share=0.99"]
    assert program["main"](flags) == 0
    assert "2 of 4 interactions" in capsys.readouterr().out
    lines = (tmp_path / "cold" / "cold.inter").read_text().splitlines()
    assert lines == ["\t".join(COLUMNS), "7\t2\t1", '8\t"3\t6']
    assert (tmp_path / "cold" / "cold.item").read_text() == "item_id:token\n1\n"
    assert (tmp_path / "cold" / "images" / "1.jpg").read_bytes() == b"photo"
    assert program["main"](flags) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (pd.DataFrame([("1", "2")], columns=COLUMNS[:2]), "no column timestamp:float"),
        (pd.DataFrame([("1", "2", "soon")], columns=COLUMNS), "column timestamp:float: could not convert"),
    ],
)
def test_a_log_without_times_is_refused(log, message):
    with pytest.raises(PerPEFTError, match=message):
        program["withheld"](log, 0.5, seed=1)
