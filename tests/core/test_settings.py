import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.run_settings import RunSettings
from recbole_perpeft.core.settings import (
    Settings,
    classes_of,
    classes_read,
    defaults_of,
    keys_of_kind,
    reachable,
    setting,
    settings_from,
)


@dataclass(frozen=True)
class Example(Settings):
    """One setting of every type."""

    rate: float = setting(help="How fast.", above=0, kind="rate")
    name: Literal["a", "b"] = setting("a", "Which.")
    sizes: tuple[int, ...] = setting((1,), "How large.")
    folder: Path | None = setting(None, "Where.", kind="place")
    options: dict[str, Any] | None = setting(None, "What else.")
    seed: int = setting(0, "Of what is drawn.", least=0, most=9)
    share: float = setting(0.5, "How much.", least=0, below=1)
    flag: bool = setting(False, "Whether.")
    names: list[str] = setting([], "Who.")
    label: str = setting("x", "What it is called.")
    other: str | None = setting(None, "What else it is called.")

    def check(self) -> None:
        if self.flag and self.seed == 9:
            raise PerPEFTError("flag: no seed 9")


def test_settings_are_converted_to_their_types():
    settings = settings_from({"rate": 1, "sizes": [2, 3], "folder": "x", "seed": 4, "unknown": 5}, Example)
    assert settings == Example(rate=1, sizes=(2, 3), folder=Path("x"), seed=4)
    assert settings.sizes == (2, 3) and settings.folder == Path("x")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "rate is missing: it must be a finite number, above 0"),
        ({"rate": "fast"}, "rate is 'fast': it must be a finite number, above 0"),
        ({"rate": True}, "rate is True: it must be a finite number, above 0"),
        ({"rate": -1.0}, "rate is -1.0: it must be a finite number, above 0"),
        ({"rate": float("inf")}, "rate is inf: it must be a finite number, above 0"),
        ({"rate": float("nan")}, "rate is nan: it must be a finite number, above 0"),
        ({"name": "c"}, "name is 'c': it must be one of a, b"),
        ({"seed": 1.5}, "seed is 1.5: it must be a whole number, at least 0 and at most 9"),
        ({"seed": 10}, "seed is 10: it must be a whole number, at least 0 and at most 9"),
        ({"share": 1}, "share is 1: it must be a finite number, at least 0 and below 1"),
        ({"flag": 1}, "flag is 1: it must be True or False"),
        ({"sizes": ["2"]}, "sizes is ['2']: it must be a list of whole numbers"),
        ({"options": [1]}, "options is [1]: it must be a mapping, or empty (~)"),
        ({"label": ""}, "label is '': it must be text that is not empty"),
        ({"flag": True, "seed": 9}, "flag: no seed 9"),
    ],
)
def test_wrong_settings_name_the_key_the_value_and_what_it_must_be(values, message):
    with pytest.raises(PerPEFTError) as caught:
        settings_from(({"rate": 1.0} if values else {}) | values, Example)
    assert str(caught.value) == message


def test_nothing_is_empty_text():
    assert Example(rate=1.0, other="").other is None


def test_defaults_that_can_change_are_nobody_elses():
    Example(rate=1.0).names.append("x")
    defaults_of([Example])["names"].append("x")
    assert Example(rate=1.0).names == [] == defaults_of([Example])["names"]


@dataclass(frozen=True)
class Gru(Settings):
    gru_size: int = setting(3, "Width.")


@dataclass(frozen=True)
class Attention(Settings):
    n_heads: int = setting(2, "Heads.", variants={4: (Gru,)})


VARIANTS = {"gru": (Gru,), "attention": (Attention,)}


@dataclass(frozen=True)
class Encoder(Settings):
    encoder: str = setting(
        "gru", "Which.", choices=("gru", "attention"), variants={"gru": (Gru,), "attention": (Attention,)}
    )


def test_choices_are_checked():
    with pytest.raises(PerPEFTError, match="encoder is 'sum': it must be one of gru, attention"):
        Encoder(encoder="sum")


def test_variants_are_read_with_the_values_that_bring_them_in():
    assert list(reachable([Encoder])) == [
        (Encoder, {}),
        (Gru, {"encoder": "gru"}),
        (Attention, {"encoder": "attention"}),
        (Gru, {"encoder": "attention", "n_heads": 4}),
    ]
    assert classes_read([Encoder], {}) == (Encoder, Gru)
    assert classes_read([Encoder], {"encoder": "attention"}) == (Encoder, Attention)
    assert classes_read([Encoder], {"encoder": "attention", "n_heads": 4}) == (Encoder, Attention, Gru)


def test_classes_are_collected_over_bases_trainer_and_data_set():
    class Trainer:
        settings_classes = (Gru,)

    class Base:
        settings_classes = (Encoder,)
        trainer_class = Trainer

    class Model(Base):
        settings_classes = (Example,)

    assert classes_of(Model) == (Example, Encoder, Gru)
    assert classes_of(int) == ()


def test_keys_have_kinds():
    assert keys_of_kind([Example], "rate", "place") == ("rate", "folder")
    assert {"seed", "epochs"}.isdisjoint(keys_of_kind([RunSettings], "protocol", "place", "display", "rate"))


def test_every_setting_of_a_run_says_what_it_is():
    assert all(each.help.endswith(".") for each in RunSettings.declared())
    assert not [each.name for each in RunSettings.declared() if each.default is dataclasses.MISSING]
