"""A user adds things of every kind in one file of his own, and trains, compares and searches with them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CONTENT = ("--model=IISAN", "--dataset=aspects", "--data_path=.", "--loss_type=hinge")
QUICK = ("--epochs=1", "--topk=[5]", "--valid_metric=firsts", "--metrics=[NDCG,Hit,Firsts]", "--show_progress=False")


@pytest.fixture
def project(tiny_aspects, tmp_path, monkeypatch):
    """A folder with `my_project.py` and a data set, as the working directory."""
    shutil.copy(Path(__file__).parent / "support" / "my_project.py", tmp_path)
    shutil.copytree(tiny_aspects, tmp_path / "aspects")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def program(*words, plugin="--plugin=my_project"):
    """Standard output and error of the command line in a process of its own, and its exit status."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "recbole_perpeft", *words, *filter(None, [plugin])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    return done.stdout, done.stderr, done.returncode


def checked(*words):
    out, error, status = program(*words)
    assert status == 0, error
    return out


def test_a_loss_and_a_metric_train_a_model_and_a_run_asks_for_its_plugin_again(project):
    checked("train", *CONTENT, *QUICK, "--margin=0.5", "--run_folder=run")
    result = json.loads(Path("run/result.json").read_text())
    assert 0 <= result["test_result"]["firsts"] <= result["test_result"]["hit@5"]
    assert yaml.safe_load(Path("run/config.yaml").read_text())["margin"] == 0.5
    _, error, status = program("train", *CONTENT, "--margin=0", *QUICK)
    assert status == 2 and "margin is 0" in error
    _, error, status = program("train", "--resume=run", plugin=None)
    assert status == 2 and "run was made with the plugin my_project: give --plugin=my_project" in error
    checked("train", "--resume=run", "--epochs=2")
    assert json.loads(Path("run/result.json").read_text())["epochs"] == 2


def test_a_model_is_listed_has_settings_and_is_checked(project):
    assert "Latest" in checked("--list_models").split()
    latest = ("train", "--model=Latest", "--dataset=aspects", "--data_path=.", *QUICK)
    checked(*latest, "--half_life=3", "--run_folder=run")
    assert yaml.safe_load(Path("run/config.yaml").read_text())["half_life"] == 3
    for flag, message in (("--half_life=-1", "half_life is -1"), ("--half_live=1", "did you mean 'half_life'")):
        _, error, status = program(*latest, flag)
        assert status == 2 and message in error
    assert "half_life" in checked("train", "--help", "--model=Latest")


def test_a_comparison_and_a_search_use_them(project):
    models = "Latest,IISAN[loss_type=hinge]"
    shared = ("--dataset=aspects", "--data_path=.", *QUICK, "--seeds=1", "--output=comparison", "--parallel=2")
    checked("compare", f"--models={models}", "--baseline=Latest", *shared)
    assert "firsts" in Path("comparison/report.md").read_text()
    space = Path("space.yaml")
    space.write_text("half_life: {uniform: [1.0, 4.0]}\n")
    flags = ("--model=Latest", "--dataset=aspects", "--data_path=.", *QUICK, "--num_samples=2", "--output=search")
    checked("search", *flags, f"--search={space}", "--scheduler=none")
    assert 1 <= yaml.safe_load(Path("search/best.yaml").read_text())["half_life"] <= 4


def test_a_source_converts(project):
    Path("pairs.txt").write_text("\n".join(f"u{n % 7} i{n % 5}" for n in range(70)))
    checked("convert", "pairs", "--input=pairs.txt", "--output=data/pairs", "--k_core=0")
    assert len(Path("data/pairs/pairs.inter").read_text().splitlines()) == 71
    assert "pairs" in checked("convert", "--help")
