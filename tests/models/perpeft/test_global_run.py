"""A finished run in the place of the global stage."""

import shutil

import pytest

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.runs.run import run
from recbole_perpeft.training.checkpoint import load_checkpoint

FREEZE = {"shared_in_groups": "freeze", "epochs": 6, "epochs_global": 6, "learning_rate": 3e-3, "stopping_step": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a finished run of `GlobalPEFT`, made once."""
    folder, made = tmp_path_factory.mktemp("finished"), []

    def of(settings):
        if not made:
            made.append(run("GlobalPEFT", config_dict=settings | {"runs_folder": str(folder)})["run_folder"])
        return made[0]

    return of


@pytest.fixture
def settings(aspects_settings, finished):
    """Settings of a run that goes on from it."""
    return aspects_settings | {"global_run": finished(aspects_settings)}


def test_a_finished_run_takes_the_place_of_the_global_stage(aspects_settings):
    baseline = run("GlobalPEFT", config_dict=aspects_settings | FREEZE)
    chosen = aspects_settings | FREEZE | {"global_run": baseline["run_folder"]}
    ours = run("PerPEFT", config_dict=chosen)
    assert ours["seconds_per_epoch"].keys() == {"personalised"}
    assert ours["best_valid_score"] >= baseline["best_valid_score"]
    with pytest.raises(PerPEFTError, match="trained with hidden_size 32 and not 16; give both runs the same"):
        run("PerPEFT", config_dict=chosen | {"hidden_size": 16})
    with pytest.raises(PerPEFTError, match="is a checkpoint of PerPEFT, not of GlobalPEFT"):
        run("PerPEFT", config_dict=chosen | {"global_run": ours["run_folder"]})


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"n_heads": 1}, "n_heads 4 and not 1"),
        ({"content_weight": 0.9}, "content_weight 0.5 and not 0.9"),
        ({"shuffle_content": True}, "shuffle_content False and not True"),
        ({"shuffle_histories": True}, "shuffle_histories False and not True|trained on other data"),
        (
            {"eval_args": {"split": {"LS": "valid_only"}, "order": "TO", "group_by": "user", "mode": "full"}},
            "eval_args: split {'LS': 'valid_and_test'} and not {'LS': 'valid_only'}",
        ),
    ],
    ids=str,
)
def test_a_run_of_other_settings_or_another_split_is_no_global_stage(settings, other, told):
    with pytest.raises(PerPEFTError, match=told):
        run("PerPEFT", config_dict=settings | other)


def test_what_leaves_vectors_as_they_are_may_differ(settings):
    other = {"dropout_prob": 0.0, "learning_rate": 1e-4, "encoder_chunk_size": 3, "epochs": 1, "seed": 7}
    ours = run("PerPEFT", config_dict=settings | other)
    assert ours["epochs"] == 1


def test_a_global_run_that_did_not_finish_is_taken_with_a_warning(settings, tmp_path, caplog):
    killed = shutil.copytree(settings["global_run"], tmp_path / "killed")
    (killed / "result.json").unlink()
    assert run("PerPEFT", config_dict=settings | {"global_run": str(killed), "epochs": 1})["epochs"] == 1
    assert f"{killed} did not finish" in caplog.text


def test_metrics_of_the_catalogue_and_data_of_checkpoints_after_a_global_run(settings):
    chosen = settings | FREEZE | {"epochs": 1}
    chosen |= {"metrics": ["NDCG", "ItemCoverage"], "learning_rate": 1e-9}
    ours = run("PerPEFT", config_dict=chosen | {"fallback_margin": 99.0})
    assert ours["group_best_epochs"] == [None] * len(ours["group_best_epochs"])
    assert load_checkpoint(f"{ours['run_folder']}/best.pth")["data"].keys() == {"ids", "log"}
