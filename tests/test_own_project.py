"""A user adds one thing of each kind in a file of his own, and trains, compares, searches and converts with them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import ConvNextImageProcessor, ResNetConfig, ResNetModel

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = "--plugin=my_project"
DATA = ("--dataset=aspects", "--data_path=.")
# A way of adapting, a family of encoders and a loss.
CONTENT = ("--model=MoRec", "--adaptation=norms", "--image_encoder=eyes", "--loss_type=hinge")
QUICK = ("--epochs=1", "--topk=[5]", "--valid_metric=firsts", "--metrics=[NDCG,Hit,Firsts]", "--show_progress=False")
# Command lines one after another in one process, so that torch is imported once.
_SHELL = """
import contextlib, io, json, sys
from recbole_perpeft.cli.main import main
results = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as error:
        status = main(words)
    results.append((status, out.getvalue(), error.getvalue()))
print("RESULTS" + json.dumps(results))
"""


@pytest.fixture(scope="module")
def project(tiny_aspects, tmp_path_factory):
    """A folder with `my_project.py`, a data set and a small ResNet, as the working directory."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(Path(__file__).parent / "support" / "my_project.py", folder)
    shutil.copytree(tiny_aspects, folder / "aspects")
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(folder / "eyes")
    ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=1.0).save_pretrained(folder / "eyes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def program(*commands):
    """Exit status, standard output and standard error of command lines."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-c", _SHELL, json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("RESULTS")[2])


@pytest.fixture(scope="module")
def finished(project):
    """What commands of which each uses something of the user's own have ended with."""
    Path("pairs.txt").write_text("\n".join(f"u{n % 7} i{n % 5}" for n in range(70)))
    latest = ("train", PLUGIN, "--model=Latest", *DATA, *QUICK)
    return program(
        ("train", PLUGIN, *DATA, *CONTENT, *QUICK, "--margin=0.5", "--run_folder=content"),
        (*latest, "--half_life=3", "--run_folder=latest"),
        ("convert", "pairs", PLUGIN, "--input=pairs.txt", "--output=data/pairs", "--k_core=0"),
        ("--list_models", PLUGIN),
        ("train", "--help", "--model=Latest", PLUGIN),
    )


def test_things_of_a_users_own_train_convert_and_have_settings(finished):
    assert [status for status, *_ in finished] == [0] * 5, [error for *_, error in finished]
    result = json.loads(Path("content/result.json").read_text())
    assert 0 <= result["test_result"]["firsts"] <= result["test_result"]["hit@5"]
    assert yaml.safe_load(Path("content/config.yaml").read_text())["margin"] == 0.5
    assert yaml.safe_load(Path("latest/config.yaml").read_text())["half_life"] == 3
    assert len(Path("data/pairs/pairs.inter").read_text().splitlines()) == 71
    assert "Latest" in finished[3][1].split() and "half_life" in finished[4][1]


def test_mistakes_are_told_and_a_finished_run_asks_for_its_plugin(finished):
    wrong = {
        "content was made with the plugin my_project: give --plugin=my_project": ("train", "--resume=content"),
        "margin is 0": ("train", PLUGIN, *DATA, *CONTENT, *QUICK, "--margin=0"),
        "half_life is -1": ("train", PLUGIN, "--model=Latest", *DATA, *QUICK, "--half_life=-1"),
        "did you mean 'half_life'": ("train", PLUGIN, "--model=Latest", *DATA, *QUICK, "--half_live=1"),
    }
    *told, resumed = program(*wrong.values(), ("train", "--resume=content", PLUGIN, "--epochs=2"))
    for message, (status, _, error) in zip(wrong, told, strict=True):
        assert status == 2 and message in error
    assert resumed[0] == 0, resumed[2]
    assert json.loads(Path("content/result.json").read_text())["epochs"] == 2


def test_a_comparison_and_a_search_use_them(project):
    models = "Latest,MoRec[adaptation=norms, image_encoder=eyes, loss_type=hinge]"
    Path("space.yaml").write_text("margin: {uniform: [0.5, 2.0]}\n")
    search = ("search", PLUGIN, *CONTENT, *DATA, *QUICK, "--num_samples=1", "--output=search", "--search=space.yaml")
    comparison = ("compare", PLUGIN, f"--models={models}", "--baseline=Latest", *DATA, *QUICK, "--seeds=1")
    results = program((*comparison, "--output=comparison"), (*search, "--scheduler=none"))
    assert [status for status, *_ in results] == [0, 0], results
    assert "firsts" in Path("comparison/report.md").read_text()
    assert 0.5 <= yaml.safe_load(Path("search/best.yaml").read_text())["margin"] <= 2
