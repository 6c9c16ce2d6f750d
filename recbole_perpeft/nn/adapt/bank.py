"""One PEFT module a group on a single frozen foundation model."""

import pickle
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import get_peft_model, get_peft_model_state_dict, load_peft_weights
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.whole import written_whole
from recbole_perpeft.nn.adapt.groups import GroupModules
from recbole_perpeft.nn.adapt.methods import check_same_settings, make_peft_config, module_names, read_peft_config
from recbole_perpeft.pretrained.dual import FoundationModel
from recbole_perpeft.pretrained.families import KINDS, find_tower

_IN_FOUNDATION = "model.base_model.model."
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


class AdapterBank(nn.Module):
    r"""PEFT modules on one foundation model: the global one, and after `personalise` one a group.

    peft puts one adapter into the foundation model. That adapter only shows where weights go: every module of the bank
    owns its weights, and a forward pass hands them to the model for the time of the call. So each method of peft
    works, a module that is not called gets no gradient (`grad` stays None, which optimisers skip, weight decay
    included), and nothing is switched on or off between groups.

    The foundation model stays in evaluation mode; the adapter's own dropout follows `train`. A state dict holds the
    modules and, where a method has them, the untrained tensors that they refer to, but no foundation weights.

    Args:
        foundation: The frozen model; the bank takes it over.
        peft_type: A method of peft, by name: `lora`, `ia3`, `vera` ...
        peft_config: Keys of the method's configuration; each replaces a default. lora and ia3 have the settings of
            PerPEFT's authors (arXiv 2602.09445).

    Attributes:
        content_size: Width of a content vector.
        foundation_fingerprint: Identifies the frozen weights.
        adapter_layers: Modules that peft put into the foundation model.

    Raises:
        PerPEFTError: Wrong `peft_type` or `peft_config`.
    """

    def __init__(self, foundation: FoundationModel, peft_type: str, peft_config: Mapping | None = None) -> None:
        super().__init__()
        self.content_size = foundation.content_size
        self.foundation_fingerprint = foundation.fingerprint
        self.template = foundation
        base_modules = {id(module) for module in foundation.modules()}
        known = {id(tensor) for tensor in foundation.model.state_dict(keep_vars=True).values()}
        self._inject(peft_type, peft_config)
        # A tuple is not registered as modules: these are part of the template.
        self.adapter_layers = tuple(module for module in foundation.modules() if id(module) not in base_modules)
        self._names = _trainable_names(foundation)
        self.modules_of_groups = GroupModules(self._new_module(dict(foundation.named_parameters())))
        known |= {id(parameter) for parameter in foundation.parameters() if parameter.requires_grad}
        foundation.requires_grad_(False)
        foundation.checkpointed = _new_names(foundation, known)

    def _inject(self, peft_type: str, peft_config: Mapping | None) -> None:
        model = self.template.model
        config = make_peft_config(peft_type, peft_config, model)
        frozen = self.template.frozen_tensors()
        try:
            with warnings.catch_warnings():
                # peft asks transformers for an attribute of old name, and does not know layer norms as layers.
                warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
                warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)
                self.template.model = get_peft_model(model, config)
        except (ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
            raise PerPEFTError(
                f"peft_config: {peft_type} cannot be put into {type(model).__name__}: {error}; "
                f"the model has modules named {module_names(model)}"
            ) from error
        if self.template.hash_tensors(frozen) != self.foundation_fingerprint:
            raise PerPEFTError(
                f"peft_config: these settings of {peft_type} start by changing the frozen weights, which all groups "
                "share; choose another initialisation of the adapter"
            )

    def _new_module(self, tensors: Mapping[str, Tensor]) -> nn.ParameterDict:
        return nn.ParameterDict(
            {key: nn.Parameter(tensors[names[0]].detach().clone()) for key, names in self._names.items()}
        )

    @property
    def base_model(self) -> nn.Module:
        """The model of transformers with the adapter in it."""
        return self.template.model.get_base_model()

    def parameters_of(self, group: int | None) -> list[nn.Parameter]:
        """Weights of a group's module; None is the global module."""
        return list(self.modules_of_groups.of(group).values())

    def parameter_groups(self) -> dict[str, str]:
        """Learning-rate group of every weight of all modules, by name.

        Returns:
            `side_text` or `side_image` for what belongs to that tower of the foundation model alone, else `recsys`.
        """
        places = dict(self.template.named_parameters(remove_duplicate=False))
        towers = {kind: set(map(id, find_tower(self.base_model, kind).parameters())) for kind in KINDS}
        group_of = {}
        for key, names in self._names.items():
            kinds = [kind for kind, inside in towers.items() if id(places[names[0]]) in inside]
            group_of[key] = f"side_{kinds[0]}" if len(kinds) == 1 else "recsys"
        modules = self.modules_of_groups
        return {f"modules_of_groups.{name}.{key}": group for name in modules for key, group in group_of.items()}

    def train(self, mode: bool = True) -> "AdapterBank":
        """As in `nn.Module`, but the foundation model's own dropout and statistics stay as in evaluation."""
        super().train(mode)
        self.template.eval()
        for layer in self.adapter_layers:
            layer.training = mode
        return self

    def forward(self, group: int | None, **batch: Tensor) -> Tensor:
        """Encodes items as a group sees them.

        Args:
            group: Number of the group; None for the global module.
            **batch: As in `FoundationModel.forward`.

        Returns:
            float32 [n, content_size]
        """
        return functional_call(self.template, self._weights(group), args=(), kwargs=batch, tie_weights=False)

    def _weights(self, group: int | None) -> dict[str, Tensor]:
        module = self.modules_of_groups.of(group)
        return {name: module[key] for key, names in self._names.items() for name in names}

    def export(self, folder: str | Path, name: str, group: int | None) -> Path:
        """Writes a group's module so that `PeftModel.from_pretrained(model, folder / name)` opens it.

        Args:
            folder: Where the module's folder goes; made if needed.
            name: Name of the module's folder.
            group: Number of the group; None for the global module.

        Returns:
            The module's folder, with `adapter_config.json` and `adapter_model.safetensors`.
        """
        target = Path(folder) / name
        target.mkdir(parents=True, exist_ok=True)
        tensors = self._saved_tensors(group).items()
        separate = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in tensors}
        with written_whole(target / "adapter_model.safetensors") as draft:
            save_file(separate, draft, metadata={"format": "pt"})
        config = self.template.model.active_peft_config
        config.inference_mode, trains = True, config.inference_mode
        config.save_pretrained(target)
        config.inference_mode = trains
        return target

    @torch.no_grad()
    def load(self, folder: str | Path, group: int | None) -> None:
        """Reads a group's module from a folder that `export`, or `save_pretrained` of a peft model, wrote.

        Args:
            folder: The module's folder: `adapter_config.json` with the settings of this bank, and
                `adapter_model.safetensors` or `adapter_model.bin`, from which nothing but tensors is read.
            group: Number of the group; None for the global module.

        Raises:
            PerPEFTError: Files are missing or damaged, or the module was made with other settings or for another
                foundation model. The bank is then as before.
        """
        check_same_settings(read_peft_config(folder), self.template.model.active_peft_config, folder)
        found, tensors = _read_weights(Path(folder)), self._saved_tensors(group)
        own = {id(parameter) for parameter in self.parameters_of(group)}
        _check_tensors(folder, found, tensors)
        for name, tensor in tensors.items():
            if id(tensor) not in own and not torch.equal(found[name].to(tensor), tensor):
                raise PerPEFTError(f"{folder}: {name}, which all groups share, differs from that of this bank")
        for name, tensor in tensors.items():
            if id(tensor) in own:
                tensor.copy_(found[name])

    def _saved_tensors(self, group: int | None) -> dict[str, Tensor]:
        """The tensors themselves that a file of the module holds, under peft's names."""
        peft_model = self.template.model
        places = dict(self.template.named_parameters(remove_duplicate=False))
        weights = {id(places[place]): tensor for place, tensor in self._weights(group).items()}
        state = peft_model.state_dict(keep_vars=True).items()
        return get_peft_model_state_dict(
            peft_model,
            state_dict={key: weights.get(id(tensor), tensor) for key, tensor in state},
            save_embedding_layers=False,
        )


def _read_weights(folder: Path) -> dict[str, Tensor]:
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise PerPEFTError(f"{folder} has no {' or '.join(_WEIGHTS)}; write it with save_pretrained of the peft model")
    try:
        return load_peft_weights(str(folder), device="cpu")
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        raise PerPEFTError(f"the weights in {folder} are damaged, or hold more than tensors") from error


def _check_tensors(folder: str | Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        raise PerPEFTError(
            f"{folder} is no module for this foundation model: {len(missing)} tensors are missing {missing[:3]}, "
            f"{len(unknown)} are unknown {unknown[:3]}"
        )
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise PerPEFTError(
                f"{folder} is no module for this foundation model: {name} has the shape "
                f"{tuple(found[name].shape)}, not {tuple(tensor.shape)}"
            )


def _trainable_names(foundation: FoundationModel) -> dict[str, tuple[str, ...]]:
    """Name in a module of the bank -> all places of that tensor in the foundation model (layers may share one)."""
    names = defaultdict(list)
    # Each layer once: a layer that two others hold would be swapped twice in a call, and not be restored after it.
    for path, module in foundation.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            if parameter.requires_grad:
                names[id(parameter)].append(name)
    return {same[0].removeprefix(_IN_FOUNDATION).replace(".", "/"): tuple(same) for same in names.values()}


def _new_names(foundation: FoundationModel, known: set[int]) -> frozenset[str]:
    """Persistent tensors that peft added and does not train, such as the projections that VeRA's layers share."""
    first_name: dict[int, str] = {}
    for name, tensor in foundation.model.state_dict(prefix="model.", keep_vars=True).items():
        if id(tensor) not in known:
            first_name.setdefault(id(tensor), name)
    return frozenset(first_name.values())
