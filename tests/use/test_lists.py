"""Lists as files: of every kind of model, for its users and for anybody's history, whole or not at all."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from recbole_perpeft.cli.main import main
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.atomic import is_log_there
from recbole_perpeft.runs.run import load
from recbole_perpeft.use import lists as lists_module
from recbole_perpeft.use.lists import FORMATS, write_lists
from recbole_perpeft.use.recommend import Recommender, Wanted

READERS = {
    ".parquet": pd.read_parquet,
    ".csv": lambda path: pd.read_csv(path, dtype={"user_id": str, "item_id": str}),
    ".tsv": lambda path: pd.read_csv(path, sep="\t", dtype={"user_id": str, "item_id": str}),
    ".jsonl": lambda path: pd.read_json(path, lines=True),
    ".ndjson": lambda path: pd.read_json(path, lines=True),
}


def recommend(*words):
    return main(["recommend", "--no_progress", *map(str, words)])


def histories_file(path, rows):
    pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("model", ["BPR", "NeuMF", "SASRec", "Caser"])
def test_lists_of_all_users_are_what_the_model_ranks(toy_run, tmp_path, model):
    assert recommend(f"--run={toy_run(model)}", "--all_users", "--k=40", f"--output={tmp_path / 'l.parquet'}") == 0
    table = pd.read_parquet(tmp_path / "l.parquet")
    log = pd.read_csv(toy_run.data / "toy" / "toy.inter", sep="\t").set_axis(["user", "item", "time"], axis=1)
    had = log.groupby("user")["item"].agg(set)
    for user, rows in table.groupby("user_id"):
        assert set(rows["item_id"]) == {f"i{item}" for item in range(30)} - had[user]
        assert rows["score"].is_monotonic_decreasing and rows["rank"].tolist() == list(range(1, len(rows) + 1))
    assert set(table["user_id"]) == set(had.index) and (table["group"] == -1).all()


def test_scores_are_those_of_recboles_interface(toy_run):
    recommender = Recommender.from_file(toy_run("SASRec"))
    _, model, _, _, _, test = load(toy_run("SASRec"))
    rows = next(iter(test))[0]
    with torch.no_grad():
        scores = model.full_sort_predict(rows).view(len(rows), -1)
    items = recommender.item_tokens
    histories = [
        items[row[:n]].tolist() for row, n in zip(rows["item_id_list"].numpy(), rows["item_length"], strict=True)
    ]
    table = recommender.for_histories(histories, k=30, exclude_seen=False)
    expected = scores.numpy()[table["row"], recommender.item_ids(table["item_id"])]
    np.testing.assert_allclose(table["score"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("suffix", FORMATS)
def test_formats_hold_the_same(toy_run, tmp_path, suffix):
    path = tmp_path / f"lists{suffix}"
    assert recommend(f"--run={toy_run('BPR')}", "--users=u3,u1", "--k=4", f"--output={path}") == 0
    expected = Recommender.from_file(toy_run("BPR")).for_users(["u3", "u1"], k=4)
    pd.testing.assert_frame_equal(READERS[suffix](path), expected, check_dtype=False, rtol=1e-4)
    assert expected["user_id"].tolist() == ["u3"] * 4 + ["u1"] * 4
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_histories_are_sorted_by_time_and_serve_anybody(toy_run, tmp_path):
    path = histories_file(
        tmp_path / "h.csv",
        [
            ("x", "i3", "1970-01-01T00:00:09"),
            ("007", "i5", "1970-01-01"),
            ("x", "i1", "2024-01-01"),
            ("x", "i2", "1970-01-01T00:00:03Z"),
        ],
    )
    assert recommend(f"--run={toy_run('SASRec')}", f"--histories={path}", f"--output={tmp_path / 'l.csv'}") == 0
    found = READERS[".csv"](tmp_path / "l.csv")
    expected = Recommender.from_file(toy_run("SASRec")).for_histories([["i2", "i3", "i1"], ["i5"]])
    assert found["item_id"].tolist() == expected["item_id"].tolist()
    assert found["user_id"].unique().tolist() == ["x", "007"]


def test_the_stock_what_is_excluded_and_the_least_score(toy_run, tmp_path):
    pd.DataFrame({"item_id": ["i1", "i2", "i3", "i4"]}).to_parquet(tmp_path / "stock.parquet")
    (tmp_path / "out.jsonl").write_text('{"item_id": "i4"}\n')
    words = (f"--run={toy_run('SASRec')}", "--history=i2", f"--candidates={tmp_path / 'stock.parquet'}")
    assert recommend(*words, f"--exclude={tmp_path / 'out.jsonl'}", f"--output={tmp_path / 'l.csv'}") == 0
    table = READERS[".csv"](tmp_path / "l.csv")
    assert set(table["item_id"]) == {"i1", "i3"}
    least = table["score"].iloc[0] - 1e-7
    recommend(*words, f"--exclude={tmp_path / 'out.jsonl'}", f"--min_score={least}", f"--output={tmp_path / 'm.csv'}")
    assert READERS[".csv"](tmp_path / "m.csv")["item_id"].tolist() == table["item_id"].tolist()[:1]


@pytest.mark.parametrize(
    ("model", "words", "message"),
    [
        ("BPR", ["--history=i1"], "BPR does not read histories"),
        ("BPR", ["--histories={}/h.csv"], "BPR does not read histories"),
        ("Caser", ["--history=i1"], "Caser learns who each user is"),
        ("BPR", ["--users=u1", "--include_new_items"], "this BPR scores the items of its log alone"),
        ("BPR", ["--users=u1,nobody"], "1 users are not in the data set: nobody"),
        ("BPR", ["--users={}/u.csv"], "u.csv: 1 row(s) name users that are not in the data set"),
        ("BPR", ["--users={}/missing.csv"], "missing.csv"),
        ("BPR", ["--users=u1", "--k=0"], "k is 0"),
        ("BPR", ["--users=u1", "--output={}/l.xlsx"], "the suffix tells the format"),
        ("BPR", ["--users=u1", "--output={}/f.csv"], "f.csv is a folder"),
        ("BPR", ["--users=u1", "--min_score=nan"], "--min_score is nan"),
        ("BPR", [], "nobody to recommend to"),
        ("BPR", ["--users=u1", "--all_users", "--output={}/l.csv"], "not both"),
        (
            "BPR",
            ["--users=u1", "--candidates={}/s.csv"],
            "s.csv: 1 row(s) name items that the model does not know: line 3 (x)",
        ),
        ("BPR", ["--users=u1", "--exclude={}/e.csv"], "no item is left"),
        ("SASRec", ["--histories={}/h.csv"], "h.csv: 1 row(s) name items that the model does not know: line 3 (x)"),
        ("SASRec", ["--histories={}/s.csv"], "s.csv, line 1: no column 'user_id'"),
        ("SASRec", ["--histories={}/t.csv"], "t.csv, line 2: the time 'soon'"),
        ("SASRec", ["--histories={}/b.csv"], "b.csv, line 2: no item_id"),
    ],
)
def test_wrong_input_is_told_in_a_sentence(toy_run, tmp_path, capsys, model, words, message):
    histories_file(tmp_path / "h.csv", [("a", "i1", 1), ("a", "x", 2)])
    histories_file(tmp_path / "t.csv", [("a", "i1", "soon")])
    histories_file(tmp_path / "b.csv", [("a", "", 1)])
    (tmp_path / "f.csv").mkdir()
    (tmp_path / "s.csv").write_text("item_id\ni1\nx\n")
    (tmp_path / "u.csv").write_text("user_id\nu1\nx\n")
    (tmp_path / "e.csv").write_text("item_id\n" + "\n".join(f"i{item}" for item in range(30)) + "\n")
    assert recommend(f"--run={toy_run(model)}", *(word.format(tmp_path) for word in words)) == 2
    error = capsys.readouterr().err.splitlines()
    assert message in error[-1] and error[-1].startswith("error: ") and len(error) == 1
    assert not list(tmp_path.glob("l.*"))


def test_unknown_items_may_be_left_out(toy_run, tmp_path, caplog):
    path = histories_file(tmp_path / "h.csv", [("a", "i1", 1), ("a", "x", 2), ("b", "y", 3), ("c", "i4", 4)])
    words = (f"--run={toy_run('SASRec')}", f"--histories={path}", f"--output={tmp_path / 'l.csv'}")
    assert recommend(*words, "--skip_unknown") == 0
    assert set(READERS[".csv"](tmp_path / "l.csv")["user_id"]) == {"a", "c"}
    assert "line 3 (x), line 4 (y)" in caplog.text and "1 users have no item" in caplog.text


def test_a_killed_process_is_gone_on_with(toy_run, tmp_path, monkeypatch):
    recommender = Recommender.from_file(toy_run("BPR"))
    recommender.scorer.users_at_once = 8
    people, wanted = recommender.people_of_log(recommender.all_users()), Wanted(5)
    write_lists(recommender, people, wanted, tmp_path / "whole.csv")
    scored = []
    score = recommender.scorer.score

    def killed_at_the_third(histories, rows, *others):
        scored.append(rows.tolist())
        if len(scored) == 3:
            raise KeyboardInterrupt
        return score(histories, rows, *others)

    monkeypatch.setattr(recommender.scorer, "score", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        write_lists(recommender, people, wanted, tmp_path / "lists.csv")
    assert not (tmp_path / "lists.csv").exists()
    write_lists(recommender, people, wanted, tmp_path / "lists.csv")
    assert len(scored) == 6 and scored[2] == scored[3], "two of five batches were kept"
    assert (tmp_path / "lists.csv").read_text() == (tmp_path / "whole.csv").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lists.csv", "whole.csv"]


def test_what_another_call_has_begun_is_not_taken(toy_run, tmp_path, monkeypatch):
    recommender = Recommender.from_file(toy_run("BPR"))
    people = recommender.people_of_log(["u1", "u2"])

    def stops(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lists_module, "tables", stops)
        with pytest.raises(KeyboardInterrupt):
            write_lists(recommender, people, Wanted(3), tmp_path / "l.csv")
    assert write_lists(recommender, people, Wanted(2), tmp_path / "l.csv") == 4
    expected = recommender.for_users(["u1", "u2"], k=2)["item_id"].tolist()
    assert READERS[".csv"](tmp_path / "l.csv")["item_id"].tolist() == expected


def test_data_that_moved_and_a_log_that_is_gone(toy_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(toy_run("SASRec"), run)
    expected = Recommender.from_file(run).for_histories([["i3", "i4"]])
    shutil.copytree(toy_run.data / "toy", tmp_path / "moved" / "toy")
    for path in (tmp_path / "moved", tmp_path / "nowhere"):
        elsewhere = Recommender.from_file(run, {"data_path": str(path)}, needs_log=False)
        pd.testing.assert_frame_equal(elsewhere.for_histories([["i3", "i4"]]), expected)
    words = (f"--run={run}", f"--data_path={tmp_path / 'nowhere'}")
    assert recommend(*words, "--all_users") == 2
    assert "there is no data set toy" in capsys.readouterr().err
    with pytest.raises(PerPEFTError, match="toy.inter is missing, so that nobody knows"):
        elsewhere.for_users(["u1"])
    (run / "ids.parquet").write_bytes(b"PAR1 no")
    assert recommend(*words, "--history=i1") == 2
    assert "ids.parquet is damaged" in capsys.readouterr().err
    (run / "ids.parquet").unlink()
    assert recommend(*words, "--history=i1") == 2
    assert "has no ids.parquet" in capsys.readouterr().err


def test_the_screen_has_titles(toy_run, tmp_path, capsys):
    shutil.copytree(toy_run.data / "toy", tmp_path / "toy")
    (tmp_path / "toy" / "toy.item").write_text(
        "item_id:token\ttitle:token_seq\n" + "".join(f"i{n}\tThing {n}\n" for n in range(30))
    )
    assert recommend(f"--run={toy_run('BPR')}", f"--data_path={tmp_path}", "--users=u1", "--k=2") == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split("\t")[-1] == "title" and len(rows) == 2
    assert all(row.split("\t")[5] == f"Thing {row.split(chr(9))[2][1:]}" for row in rows)


def test_lists_of_the_last_of_all_items(toy_run):
    with pytest.raises(PerPEFTError, match="no item is left"):
        Recommender.from_file(toy_run("BPR")).for_users(["u1"], exclude=[f"i{n}" for n in range(30)])


def test_json_lines_keep_ids_as_texts(toy_run, tmp_path):
    assert recommend(f"--run={toy_run('SASRec')}", "--history=i1", "--k=1", f"--output={tmp_path / 'l.jsonl'}") == 0
    row = json.loads((tmp_path / "l.jsonl").read_text())
    assert list(row) == ["row", "rank", "item_id", "score", "group"] and row["row"] == 0


@pytest.mark.parametrize(
    ("parts", "names"), [(None, ["toy.inter"]), (["train", "test"], ["toy.train.inter", "toy.test.inter"])]
)
def test_a_log_in_parts_is_a_log(tmp_path, parts, names):
    config = type("Settings", (dict,), {"dataset_folder": tmp_path})(dataset="toy", benchmark_filename=parts)
    for name in names:
        assert not is_log_there(config)
        (tmp_path / name).touch()
    assert is_log_there(config)


def test_each_user_has_one_list(toy_run, tmp_path):
    (tmp_path / "orders.csv").write_text("user_id,item_id\nu1,i1\nu2,i1\nu1,i2\n")
    for users in (tmp_path / "orders.csv", "u1,u2,u1"):
        output = tmp_path / f"{Path(users).stem}.jsonl"
        assert recommend(f"--run={toy_run('BPR')}", f"--users={users}", "--k=1", f"--output={output}") == 0
        assert [json.loads(line)["user_id"] for line in output.read_text().splitlines()] == ["u1", "u2"]


def test_lists_of_nothing_are_an_empty_file(toy_run, tmp_path):
    words = [f"--run={toy_run('BPR')}", "--users=u1", f"--output={tmp_path / 'l.jsonl'}"]
    assert recommend(*words, "--min_score", "1e9") == 0
    assert (tmp_path / "l.jsonl").read_text() == ""
