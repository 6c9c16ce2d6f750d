"""One spelling of flags for every verb."""

import pytest

from recbole_perpeft.cli.flags import Flags, settings_of
from recbole_perpeft.core.errors import PerPEFTError


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ([], {}),
        (["--model=SASRec", "--epochs", "3"], {"model": "SASRec", "epochs": "3"}),
        (["-m", "BPR", "-d", "toy"], {"model": "BPR", "dataset": "toy"}),
        (["--peft_config={'r': 4, 'x': 'a=b'}"], {"peft_config": "{'r': 4, 'x': 'a=b'}"}),
        (["--x=1", "--x=1"], {"x": "1"}),
        (["-h"], {"help": True}),
        (["--gpu_id="], {"gpu_id": ""}),
        (["--world_size", "-1"], {"world_size": "-1"}),
        (["--learning-rate=1e-3", "--peft-type", "lo-ra"], {"learning_rate": "1e-3", "peft_type": "lo-ra"}),
    ],
)
def test_words_become_settings(words, settings):
    assert settings_of(words) == settings


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["SASRec"], "cannot make sense of 'SASRec'"),
        (["--epochs"], "needs a value"),
        (["--epochs", "--seed=1"], "needs a value"),
        (["--seed=1", "--seed=2"], "given twice"),
    ],
)
def test_words_that_make_no_sense_are_named(words, message):
    with pytest.raises(PerPEFTError, match=message):
        settings_of(words)


@pytest.fixture
def flags():
    flags = Flags("draw", "Draws.", "--max_side=3")
    flags.add_argument("--max_side", type=int, required=True)
    flags.add_argument("--title", default="none")
    flags.add_argument("--dry_run", action="store_true")
    return flags


@pytest.mark.parametrize(
    "words",
    [
        ["--max-side=3", "--title=a-b --c-d", "--dry-run"],
        ["--max_side", "3", "--title", "a-b --c-d", "--dry_run"],
    ],
)
def test_both_spellings_of_flags_work(flags, words):
    assert vars(flags.parse(words)) == {"max_side": 3, "title": "a-b --c-d", "dry_run": True}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "max_side"),
        (["--max_side=many"], "invalid int value: 'many'; see recbole-perpeft draw --help"),
        (["--max_side"], "expected one argument"),
        (["--max_side=3", "--max_site=4"], "there is no flag --max_site, did you mean --max_side?"),
        (["--max_side=3", "--titl=x"], "there is no flag --titl, did you mean --title?"),
        (["--max_side=3", "--zzz"], "there is no flag --zzz; see recbole-perpeft draw --help"),
        (["--max_side=3", "word"], "cannot make sense of 'word'"),
    ],
)
def test_wrong_flags_are_one_line(flags, words, message):
    with pytest.raises(PerPEFTError) as caught:
        flags.parse(words)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("word", ["--", "--=", "--=x"])
def test_a_flag_without_a_name_is_told_as_it_was_written(word):
    with pytest.raises(PerPEFTError, match=f"cannot make sense of '{word}'"):
        settings_of([word])


@pytest.mark.parametrize("words", [["--least", "-1e-3"], ["--least=-1e-3"], ["--least", "-.001"]])
def test_negative_numbers_are_no_flags(words):
    flags = Flags("verb", "It does.")
    flags.add_argument("--least", type=float)
    assert flags.parse(words).least == -0.001
