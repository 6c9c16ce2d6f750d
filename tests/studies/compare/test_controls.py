"""Which controls a model brings along, and that noise is what a model then reads."""

import pytest

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.run import run
from recbole_perpeft.studies.compare.jobs.controls import controls_of
from recbole_perpeft.studies.compare.jobs.plan import plan
from recbole_perpeft.studies.compare.jobs.specs import ModelSpec, parse_models

CONTENT = ["content of other items", "noise for content", "titles alone", "photos alone"]
GROUPS = ["histories shuffled", "random groups", "groups by hidden_group"]
HERE = {"image_encoder": "aspects-clip", "text_encoder": "aspects-clip"}


@pytest.mark.parametrize(
    ("model", "own", "titles"),
    [
        ("PerPEFT", {"foundation_model": "aspects-clip"}, [*CONTENT, "ids alone", *GROUPS]),
        ("PerPEFT", HERE | {"grouping": "random"}, [*CONTENT, "ids alone", GROUPS[0], GROUPS[2]]),
        ("GlobalPEFT", {"text_encoder": "aspects-clip"}, [*CONTENT[:2], "ids alone", GROUPS[0]]),
        ("GlobalPEFT", {"peft_type": "ids"}, [GROUPS[0]]),
        ("MoRec", HERE, [*CONTENT, GROUPS[0]]),
        ("ContentKNN", HERE, [*CONTENT, GROUPS[0]]),
        ("SASRec", {}, []),
        ("BPR", {}, []),
    ],
)
def test_controls_of_a_model(model, own, titles):
    spec = ModelSpec("mine", model, own)
    made = controls_of(spec, Config(model, "aspects", config_dict=own), "hidden_group")
    assert [control.name for control in made] == [f"mine, {title}" for title in titles]
    for control in made:
        config = Config(control.model, "aspects", config_dict=control.settings)  # the settings go together
        assert config["model"] == ("GlobalPEFT" if control.name.endswith("ids alone") else model)


def test_a_comparison_with_controls_has_their_runs(aspects_settings):
    settings = {key: str(value) for key, value in aspects_settings.items() if key != "dataset"}
    made = plan(parse_models("Pop, ContentKNN as KNN"), "aspects", 1, (), settings, code_version="1", controls=True)
    assert [job.spec.name for job in made.jobs] == ["Pop", "KNN", *(f"KNN, {each}" for each in [*CONTENT, GROUPS[0]])]
    results = {}
    for job in made.jobs[1:4]:
        results[job.spec.name] = run(config_dict=dict(job.settings) | {"epochs": 1})["test_result"]["ndcg@10"]
    assert len(set(results.values())) == 3


def test_the_flag_stands_alone(monkeypatch):
    from recbole_perpeft.cli.compare import parse
    from recbole_perpeft.cli.compare import run as compare

    assert parse(["--models=Pop", "--controls"]) == {"models": "Pop", "controls": True}
    with pytest.raises(PerPEFTError, match="--controls is 'maybe'"):
        compare(parse(["--models=Pop", "--controls=maybe"]))
