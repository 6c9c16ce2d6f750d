"""Which methods of the peft library can be used, and how `peft_type` and `peft_config` become its configuration."""

import dataclasses
import difflib
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.nn.adapt.tuning import Encoder, module_names
from recbole_perpeft.pretrained.families import find_tower, peft_targets

_INPUTS = "it changes the input sequence of a language model instead of the layers of an encoder"
_REFUSED = {
    "adalora": "it moves its rank budget between layers by calls in a training loop of its own; use lora",
    "adaption_prompt": _INPUTS,
    "cartridge": _INPUTS,
    "cpt": _INPUTS,
    "dora": "peft has it as lora with peft_config {use_dora: true}",
    "multitask_prompt_tuning": _INPUTS,
    "osf": "it projects gradients by hooks in a training loop of its own, and holds a copy of the weights a group",
    "p_tuning": _INPUTS,
    "poly": "it needs a task number with every input",
    "prefix_tuning": _INPUTS,
    "prompt_tuning": _INPUTS,
    "shadow": "it rebuilds a decoder of a language model",
    "trainable_tokens": "it adapts the rows of a vocabulary only, and leaves images alone",
    "xlora": "it mixes adapters that were trained before; use lora",
}
_NEEDS_A_PASS = "it needs a pass of peft's own over data before the training, without which it is plain lora"
# Values of keys that would have no effect here.
_WITHOUT_EFFECT: Mapping[str, Mapping[str, str]] = {
    "init_lora_weights": {"eva": _NEEDS_A_PASS, "lora_ga": _NEEDS_A_PASS},
    "alora_invocation_tokens": {"": "its adapter waits for tokens of a language model's prompt, and never acts here"},
}
_CHOOSES_PLACES = frozenset({"target_modules", "target_parameters", "exclude_modules", "layers_to_transform"})
# The settings of PerPEFT's authors for lora; elsewhere what peft leaves open. What is adapted depends on the model.
_DEFAULTS: Mapping[str, dict] = {
    "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "bias": "none"},
    "shira": {"random_seed": 0},
}


def supported_peft_types() -> list[str]:
    """Names that `peft_type` takes, in lower case; they depend on the installed peft."""
    return sorted({kind.value.lower() for kind in PEFT_TYPE_TO_CONFIG_MAPPING} - _REFUSED.keys())


def is_peft_type(name: str) -> bool:
    """Whether peft has a method of that name, be it one that cannot be used here."""
    return name in _REFUSED or name in supported_peft_types()


@dataclass(frozen=True)
class PeftMethod:
    """Puts a method of peft into an encoder.

    Args:
        peft_type: Name of the method, in any case: `lora`, `ia3`, `vera` ...
        peft_config: Keys of the method's configuration; each replaces a default. lora and ia3 have the settings of
            PerPEFT's authors (arXiv 2602.09445).
    """

    peft_type: str
    peft_config: Mapping[str, Any] | None = None

    def __call__(self, encoder: Encoder) -> None:
        """As in `Method`; afterwards the encoder's model is one of peft around its own.

        Raises:
            PerPEFTError: Wrong `peft_type` or `peft_config`.
        """
        model = encoder.model
        config = make_peft_config(self.peft_type, self.peft_config, model)
        try:
            with warnings.catch_warnings():
                # peft asks transformers for an attribute of old name, and does not know layer norms as layers.
                warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
                warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)
                encoder.model = get_peft_model(model, config)
        except (ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
            raise PerPEFTError(
                f"peft_config: {self.peft_type} cannot be put into {type(model).__name__}: {error}; "
                f"the model has modules named {module_names(model)}"
            ) from error
        if _CHOOSES_PLACES.isdisjoint(self.peft_config or {}):
            self._check_towers(encoder, model)

    def _check_towers(self, encoder: Encoder, model: nn.Module) -> None:
        """Whether all towers of a dual encoder are adapted, as long as nobody has named modules."""
        for kind in encoder.kinds:
            tower = find_tower(model, kind)
            if not any(parameter.requires_grad for parameter in tower.parameters()):
                raise PerPEFTError(
                    f"peft_config: the {kind} tower of {type(model).__name__} has no modules that {self.peft_type} "
                    f"usually adapts; it has modules named {module_names(tower)}. Name target_modules of both towers, "
                    "or of one if the other shall stay as it is"
                )


def make_peft_config(peft_type: str, overrides: Mapping | None, model: nn.Module) -> PeftConfig:
    """Builds the configuration of a peft method for a model.

    Args:
        peft_type: Name of the method, in any case.
        overrides: Keys of the method's configuration class; each replaces the default of that key.
        model: The model to be adapted; module names are looked up in it.

    Raises:
        PerPEFTError: An unknown or unusable method, an unknown key, a value that peft refuses, or target modules that
            the model does not have.
    """
    name = str(peft_type).lower()
    if name in _REFUSED:
        raise PerPEFTError(f"peft_type: {name} cannot be used here: {_REFUSED[name]}")
    if name not in supported_peft_types():
        raise PerPEFTError(f"peft_type: {peft_type!r} is no method of the installed peft")
    config_class = next(cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items() if kind.value.lower() == name)
    _check_effect(overrides or {})
    settings = _with_defaults(name, config_class, dict(overrides or {}), model)
    if not settings["target_modules"] and "target_modules" not in (overrides or {}):
        raise PerPEFTError(
            f"peft_config: {type(model).__name__} has no modules that {name} usually adapts; it has modules named "
            f"{module_names(model)}. Name target_modules, or choose full or bitfit"
        )
    for key in ("target_modules", "feedforward_modules"):
        _check_targets(key, settings.get(key), model)
    try:
        return config_class(**settings)
    except (TypeError, ValueError) as error:
        raise PerPEFTError(f"peft_config: {name} refuses {overrides}: {error}") from error


def _check_effect(overrides: Mapping) -> None:
    for key, reasons in _WITHOUT_EFFECT.items():
        reason = reasons.get(str(overrides.get(key)).lower(), reasons.get("") if overrides.get(key) else None)
        if reason is not None:
            raise PerPEFTError(f"peft_config: {key} {overrides[key]!r} cannot be used here: {reason}")


def read_peft_config(folder: str | Path) -> PeftConfig:
    """Reads the `adapter_config.json` of a folder that peft's `save_pretrained` wrote.

    Raises:
        PerPEFTError: The file is missing or no configuration of the installed peft.
    """
    path = Path(folder) / "adapter_config.json"
    if not path.is_file():
        raise PerPEFTError(f"{path} is missing; write the folder with save_pretrained of the peft model")
    try:
        return PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise PerPEFTError(f"{path} is no configuration of the installed peft: {error}") from error


def peft_settings(config: PeftConfig) -> tuple[str, dict]:
    """The `peft_type` and `peft_config` that stand for a configuration of peft.

    Returns:
        The method, and the keys that differ from the defaults of `make_peft_config`, as JSON-able values.
    """
    name = PeftType(config.peft_type).value.lower()
    default = _plain(type(config)(**_with_defaults(name, type(config), {})))
    return name, {key: value for key, value in _plain(config).items() if value != default[key]}


def check_same_settings(found: PeftConfig, expected: PeftConfig, source: str | Path) -> None:
    """Compares what the tensors of a module do not show, such as the scale of LoRA.

    Args:
        found: Configuration of a saved module.
        expected: Configuration that it is to be used with.
        source: The saved module, for the message.

    Raises:
        PerPEFTError: Another method, or a key with another value.
    """
    if found.peft_type != expected.peft_type:
        methods = [PeftType(config.peft_type).value for config in (found, expected)]
        raise PerPEFTError(f"{source} is a module of {methods[0]}, not of {methods[1]}")
    wanted = _plain(expected)
    for key, value in _plain(found).items():
        # Which modules are adapted shows in the tensors, and peft may list them in another way than the user.
        if not key.endswith("_modules") and value != wanted[key]:
            raise PerPEFTError(f"{source} was made with {key} = {value}, not {wanted[key]}")


def _plain(config: PeftConfig) -> dict:
    """Keys of the method as JSON has them, sets sorted."""
    common = {field.name for field in dataclasses.fields(PeftConfig)}
    values = {key: value for key, value in config.to_dict().items() if key not in common}
    return json.loads(json.dumps(values, default=sorted))


def _with_defaults(
    name: str, config_class: type[PeftConfig], overrides: Mapping, model: nn.Module | None = None
) -> dict:
    common = {field.name for field in dataclasses.fields(PeftConfig)}
    keys = {field.name for field in dataclasses.fields(config_class)} - common
    for key in overrides:
        if key not in keys:
            raise PerPEFTError(
                f"peft_config: {name} has no key {key!r}{_suggestion(str(key), keys)}; "
                f"its keys are {', '.join(sorted(keys))}"
            )
    defaults = {**peft_targets(name, model), **_DEFAULTS.get(name, {})}
    settings = {**defaults, **overrides}
    targets = settings["target_modules"]
    if "feedforward_modules" in defaults and "feedforward_modules" not in overrides and not isinstance(targets, str):
        settings["feedforward_modules"] = [part for part in defaults["feedforward_modules"] if part in targets]
    return settings


def _check_targets(key: str, targets: str | Iterable[str] | None, model: nn.Module) -> None:
    if targets is None or isinstance(targets, str):
        return  # A pattern: peft itself says when it matches nothing.
    modules = [name for name, _ in model.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in modules):
            raise PerPEFTError(
                f"peft_config: {key} names {target!r}, which matches no module of {type(model).__name__}; "
                f"it has modules named {module_names(model)}"
            )


def _suggestion(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, sorted(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
