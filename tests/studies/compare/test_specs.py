from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.runs.config import properties_folder
from recbole_perpeft.studies.compare.jobs.specs import ModelSpec, choose, parse_models

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("Pop,SASRec", [ModelSpec("Pop", "Pop"), ModelSpec("SASRec", "SASRec")]),
        (
            "PerPEFT, PerPEFT[peft_type=ia3] as PerPEFT-IA3",
            [ModelSpec("PerPEFT", "PerPEFT"), ModelSpec("PerPEFT-IA3", "PerPEFT", {"peft_type": "ia3"})],
        ),
        ("BPR[embedding_size = 8]", [ModelSpec("BPR[embedding_size = 8]", "BPR", {"embedding_size": "8"})]),
        ("BPR[a=1,b=2]as x", [ModelSpec("x", "BPR", {"a": "1", "b": "2"})]),
        ("SASRec as SASRec (ids), Pop,", [ModelSpec("SASRec (ids)", "SASRec"), ModelSpec("Pop", "Pop")]),
        (
            "PerPEFT[peft_config={r: 4, target_modules: [q, v]}, x='a,]b'] as P",
            [ModelSpec("P", "PerPEFT", {"peft_config": "{r: 4, target_modules: [q, v]}", "x": "'a,]b'"})],
        ),
    ],
)
def test_lists_of_models(text, specs):
    assert parse_models(text) == specs


values = st.recursive(
    st.text("ab1. ", min_size=1).map(str.strip).filter(bool),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(lambda parts: "[" + ", ".join(parts) + "]"),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.sampled_from(["learning_rate", "layers", "x"]), values), min_size=1, max_size=4))
def test_whatever_settings_are_written_are_read(models):
    written = [
        "BPR[" + ", ".join(f"{key}={value}" for key, value in chosen.items()) + f"] as model {number}"
        for number, chosen in enumerate(models)
    ]
    specs = parse_models(" , ".join(written))
    assert [dict(spec.settings) for spec in specs] == models
    assert [spec.name for spec in specs] == [f"model {number}" for number in range(len(models))]


def test_models_from_a_file_and_by_name(tmp_path):
    file = tmp_path / "models.yaml"
    file.write_text("BPR:\nsmall BPR: {model: BPR, embedding_size: 8}\n")
    specs = parse_models(f"Pop, @{file}")
    assert specs == [
        ModelSpec("Pop", "Pop"),
        ModelSpec("BPR", "BPR"),
        ModelSpec("small BPR", "BPR", {"embedding_size": 8}),
    ]
    assert choose(specs, ["small BPR", "Pop"]) == [specs[2], specs[0]]
    with pytest.raises(PerPEFTError, match="no model of the comparison is named 'Big'; there are Pop; BPR; small BPR"):
        choose(specs, ["Big"])


def test_models_from_python():
    mine = ModelSpec("mine", "BPR", {"embedding_size": 8})
    assert parse_models(["Pop, BPR", mine]) == [ModelSpec("Pop", "Pop"), ModelSpec("BPR", "BPR"), mine]
    with pytest.raises(PerPEFTError, match="two models are named 'mine'"):
        parse_models([mine, "Pop as mine"])


@pytest.mark.parametrize("name", [path.stem for path in sorted((ROOT / "properties" / "compare").glob("*.yaml"))])
def test_shipped_lists_work(name):
    assert properties_folder() == ROOT / "properties"
    assert len(parse_models(f"@{name}")) > 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no model"),
        ("SASRek", "did you mean SASRec"),
        ("BPR, BPR", "two models are named 'BPR'"),
        ("BPR[learning_rate]", "not key=value"),
        ("BPR[=2]", "not key=value"),
        ("BPR[x=1, x=2]", "x is given twice"),
        ("BPR[x=[1, 2]", "']' is missing"),
        ("BPR x=1]", "closes nothing"),
        ("BPR SASRec", "cannot make sense of the model 'BPR SASRec'"),
        ("BPR as", "cannot make sense"),
        ("@nowhere.yaml", "cannot read the settings file nowhere.yaml"),
    ],
)
def test_bad_lists(text, message):
    with pytest.raises(PerPEFTError) as error:
        parse_models(text)
    assert message in str(error.value)


def test_bad_file(tmp_path):
    (tmp_path / "models.yaml").write_text("BPR: 8\n")
    with pytest.raises(PerPEFTError, match="BPR must have settings"):
        parse_models(f"@{tmp_path / 'models.yaml'}")
