import shutil

import numpy as np
import pandas as pd
import pytest

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.runs import config
from recbole_perpeft.studies.compare.jobs import plan as plans
from recbole_perpeft.studies.compare.jobs.plan import plan, run_key
from recbole_perpeft.studies.compare.jobs.specs import parse_models

SETTINGS = {"model": "PerPEFT", "learning_rate": 0.001, "data_path": "here", "show_progress": True, "seed": 1}


@pytest.fixture
def shared(toy_settings):
    """Settings of all models, as `--key=value` gives them."""
    return {key: str(value) for key, value in toy_settings.items() if key != "dataset"}


def test_given_parts_have_no_other_split(shared):
    given = shared | {"benchmark_filename": "['train', 'valid', 'test']"}
    with pytest.raises(PerPEFTError, match="the parts of toy are given .* leave --splits out"):
        plan(parse_models("Pop"), "toy", 1, config_dict=given, split="GT")


def test_a_global_run_counts_by_its_model(tmp_path):
    keys = []
    for content in None, b"one", b"two":
        if content:
            (tmp_path / "best.pth").write_bytes(content)
        keys.append(run_key(SETTINGS | {"global_run": str(tmp_path)}, "cpu", "data", "code"))
    assert len({*keys}) == 3 and keys[2] == run_key(SETTINGS | {"global_run": str(tmp_path)}, "cpu", "data", "code")


def test_every_model_with_every_seed(shared):
    made = plan(parse_models("Pop, BPR[embedding_size=8] as small"), "toy", 2, config_dict=shared | {"seed": "5"})
    assert [str(job) for job in made.jobs] == [
        f"{name} on toy, seed {seed}" for name in ("Pop", "small") for seed in (5, 6)
    ]
    assert len({job.folder for job in made.jobs}) == 4
    assert made.jobs[3].settings["embedding_size"] == 8 and made.jobs[3].settings["seed"] == 6
    assert made.protocol["topk"] == [5, 10] and made.protocol["mask_history"] == "keep_target"


def test_the_same_settings_are_the_same_run(shared):
    made = plan(parse_models("BPR, BPR[embedding_size=64] as same, BPR[embedding_size=8]"), "toy", 1, (), shared)
    assert made.jobs[0].folder == made.jobs[1].folder != made.jobs[2].folder
    named = plan(parse_models("BPR"), "toy", 1, (), shared, code_version="of May")
    assert named.jobs[0].folder != made.jobs[0].folder


def test_a_preset_is_named_as_for_a_run(shared):
    (job,) = plan(parse_models("IISAN"), "toy", 1, ["strong"], shared | {"text_encoder": "aspects-clip"}).jobs
    assert job.settings["loss_type"] == "sampled_softmax"


def test_what_changes_numbers_changes_the_key():
    key = run_key(SETTINGS, "cpu", "data", "code")
    assert len(key) == 16 and key == run_key(dict(reversed(SETTINGS.items())), "cpu", "data", "code")
    elsewhere = {"data_path": "there", "show_progress": False, "groups_at_once": 4}
    assert key == run_key(SETTINGS | elsewhere, "cpu", "data", "code")
    others = {
        run_key(SETTINGS | {"learning_rate": 0.01}, "cpu", "data", "code"),
        run_key(SETTINGS | {"seed": 2}, "cpu", "data", "code"),
        run_key(SETTINGS, "cuda", "data", "code"),
        run_key(SETTINGS, "cpu", "other data", "code"),
        run_key(SETTINGS, "cpu", "data", "other code"),
    }
    assert len(others) == 5 and key not in others


def test_description_of_the_data(shared, toy_path):
    description = plan(parse_models("Pop"), "toy", 1, config_dict=shared).description
    log = pd.read_csv(toy_path / "toy" / "toy.inter", sep="\t").set_axis(["user", "item", "time"], axis=1)
    history = log.groupby("user").size() - 1
    train = log[log.groupby("user").cumcount(ascending=False) >= 2].groupby("item").size()
    assert dict(zip(description.users, description.history_length, strict=True)) == history.to_dict()
    counts = pd.Series(description.train_count, description.items)
    assert counts[counts > 0].to_dict() == train.to_dict()
    assert isinstance(description.train_count, np.ndarray) and description.true_group is None


def test_the_protocol_does_not_come_from_models(shared, tmp_path, monkeypatch):
    """A data set may give a model settings of its own, but no early stopping of its own."""
    folder = tmp_path / "properties"
    shutil.copytree(config.properties_folder(), folder)
    own = "stopping_step: 7\nmodels:\n  BPR: {stopping_step: 1, embedding_size: 8}\n"
    (folder / "dataset" / "toy.yaml").write_text(own)
    for module in (config, plans):
        monkeypatch.setattr(module, "properties_folder", lambda: folder)
    settings = plan(parse_models("BPR"), "toy", 1, config_dict=shared).jobs[0].settings
    assert settings["stopping_step"] == 7 and settings["embedding_size"] == 8


@pytest.mark.parametrize(
    ("models", "changes", "message"),
    [
        ("BPR[topk=[3]]", {}, "sets topk, which is the same for all models of a comparison: give --topk=... instead"),
        ("BPR[mask_history=none]", {}, "sets mask_history"),
        ("BPR[seed=1]", {}, "sets seed"),
        ("BPR[embeding_size=8] as B", {}, "B on toy: unknown setting 'embeding_size', did you mean 'embedding_size'?"),
        ("BPR, FM", {}, "FM predicts labels"),
        ("BPR", {"topkk": "[3]"}, "unknown setting 'topkk'"),
        ("BPR", {"valid_metric": "NDCG@7"}, "valid_metric is NDCG@7"),
        ("BPR", {"run_folder": "here"}, "run_folder cannot be a setting of all runs"),
        ("BPR", {"data_path": "nowhere"}, "there is no data set toy"),
    ],
)
def test_bad_input(shared, models, changes, message):
    with pytest.raises(PerPEFTError) as error:
        plan(parse_models(models), "toy", 1, config_dict=shared | changes)
    assert message in str(error.value)


def test_true_groups(shared, toy_path):
    with pytest.raises(PerPEFTError, match="toy.user is missing"):
        plan(parse_models("Pop"), "toy", 1, config_dict=shared, true_group_field="team")
    lines = [f"u{user}\t{'ab'[user % 2]}" for user in range(40)]
    (toy_path / "toy" / "toy.user").write_text("\n".join(["user_id:token\tteam:token", *lines]) + "\n")
    description = plan(parse_models("Pop"), "toy", 1, config_dict=shared, true_group_field="team").description
    groups = pd.Series(description.true_group, description.users)
    assert groups[["u0", "u2"]].nunique() == 1 and groups["u0"] != groups["u1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:4] + lines[5:], r"1 users of the log have no team, for instance 'u3'"),
        (lambda lines: [*lines[:4], "u3\t", *lines[5:]], r"1 users of the log have no team, for instance 'u3'"),
        (lambda lines: [*lines, lines[7]], r"the user 'u6' has several lines"),
        (lambda lines: ["user_id:token\tclub:token", *lines[1:]], r"no column team"),
        (lambda lines: [*lines[:2], "u1\tb\tb", *lines[3:]], r"line 3: 3 cell\(s\) instead of 2"),
    ],
)
def test_true_groups_that_are_not_there_are_named(shared, toy_path, change, message):
    lines = ["user_id:token\tteam:token", *(f"u{user}\t{'ab'[user % 2]}" for user in range(40))]
    (toy_path / "toy" / "toy.user").write_text("\n".join(change(lines)) + "\n")
    with pytest.raises(PerPEFTError, match=rf"toy\.user.*{message}"):
        plan(parse_models("Pop"), "toy", 1, config_dict=shared, true_group_field="team")


def test_interactions_of_users_without_a_line_are_not_lost_in_silence(shared, toy_path, caplog):
    lines = ["user_id:token\tteam:token", *(f"u{user}\ta" for user in range(39))]
    (toy_path / "toy" / "toy.user").write_text("\n".join(lines) + "\n")
    columns = {"inter": ["user_id", "item_id", "timestamp"], "user": ["user_id", "team"]}
    plan(parse_models("Pop"), "toy", 1, config_dict=shared | {"load_col": columns})
    assert "interactions are left out" in caplog.text and "toy.user" in caplog.text
