"""One PEFT module a group on a single frozen foundation model."""

import pickle
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.func import functional_call

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.whole import written_whole
from recbole_perpeft.nn.adapt.groups import GroupModules
from recbole_perpeft.nn.adapt.methods import check_same_settings, read_peft_config
from recbole_perpeft.nn.adapt.tuning import Encoder, Method, insert, untrained_names
from recbole_perpeft.pretrained.dual import FoundationModel
from recbole_perpeft.pretrained.families import find_tower
from recbole_perpeft.pretrained.tower import PooledTower
from recbole_perpeft.store.arrays import save_tensors

_IN_ENCODER = re.compile(r"model\.(base_model\.model\.)?")
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


class AdapterBank(nn.Module):
    r"""PEFT modules on one frozen model: the global one, and after `personalise` one a group.

    A method puts one adapter into the model. That adapter only shows where weights go: every module of the bank
    owns its weights, and a forward pass hands them to the model for the time of the call. So each method of peft
    works, a module that is not called gets no gradient (`grad` stays None, which optimisers skip, weight decay
    included), and nothing is switched on or off between groups.

    The model stays in evaluation mode; the adapter's own dropout follows `train`. A state dict holds the
    modules and, where a method has them, the untrained tensors that they refer to, but no foundation weights.

    Args:
        encoder: The frozen model; the bank takes it over.
        method: Puts the adapter in, or says what is trained of the model itself.

    Attributes:
        content_size: Width of a content vector.
        foundation_fingerprint: Identifies the frozen weights.
        adapter_layers: Modules that the method put into the model.
        adapted: These, and modules of the model of which a weight is trained.

    Raises:
        PerPEFTError: The method does not fit the model.
    """

    def __init__(self, encoder: FoundationModel | PooledTower, method: Method) -> None:
        super().__init__()
        self.content_size = encoder.content_size
        self.foundation_fingerprint = encoder.fingerprint
        self.template = encoder
        inserted = insert(encoder, method)
        # A tuple is not registered as modules: these are part of the template.
        self.adapter_layers = inserted.layers
        owners = (m for m in encoder.modules() if any(p.requires_grad for p in m.parameters(recurse=False)))
        self.adapted = (*inserted.layers, *owners)
        self._names = _trainable_names(encoder)
        places = dict(encoder.named_parameters())
        self._pretrained = {key for key, names in self._names.items() if id(places[names[0]]) in inserted.pretrained}
        self.modules_of_groups = GroupModules(self._new_module(places))
        trained = frozenset(id(parameter) for parameter in encoder.parameters() if parameter.requires_grad)
        encoder.requires_grad_(False)
        encoder.checkpointed = untrained_names(encoder, inserted.pretrained | trained)

    def _new_module(self, tensors: Mapping[str, Tensor]) -> nn.ParameterDict:
        return nn.ParameterDict(
            {key: nn.Parameter(tensors[names[0]].detach().clone()) for key, names in self._names.items()}
        )

    @property
    def base_model(self) -> nn.Module:
        """The model of transformers with the adapter in it."""
        model = self.template.model
        return model.get_base_model() if isinstance(model, PeftModel) else model

    def parameters_of(self, group: int | None) -> list[nn.Parameter]:
        """Weights of a group's module; None is the global module."""
        return list(self.modules_of_groups.of(group).values())

    def parameter_groups(self) -> dict[str, str]:
        """Learning-rate group of every weight of all modules, by name.

        Returns:
            For what belongs to one tower alone, `side_text` or `side_image` if the method brought it in,
            `backbone_text` or `backbone_image` if it is the tower's own; else `recsys`.
        """
        places = dict(self.template.named_parameters(remove_duplicate=False))
        towers = {kind: set(map(id, find_tower(self.base_model, kind).parameters())) for kind in self.template.kinds}
        group_of = {}
        for key, names in self._names.items():
            kinds = [kind for kind, inside in towers.items() if id(places[names[0]]) in inside]
            origin = "backbone" if key in self._pretrained else "side"
            group_of[key] = f"{origin}_{kinds[0]}" if len(kinds) == 1 else "recsys"
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
            **batch: As in the model's `forward`.

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
        separate = {key: tensor.detach().clone() for key, tensor in self._saved_tensors(group).items()}
        with written_whole(target / "adapter_model.safetensors") as draft:
            save_tensors(separate, draft, {"format": "pt"})
        config = self._peft_model.active_peft_config
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
        check_same_settings(read_peft_config(folder), self._peft_model.active_peft_config, folder)
        found, tensors = _read_weights(Path(folder)), self._saved_tensors(group)
        own = {id(parameter) for parameter in self.parameters_of(group)}
        _check_tensors(folder, found, tensors)
        for name, tensor in tensors.items():
            if id(tensor) not in own and not torch.equal(found[name].to(tensor), tensor):
                raise PerPEFTError(f"{folder}: {name}, which all groups share, differs from that of this bank")
        for name, tensor in tensors.items():
            if id(tensor) in own:
                tensor.copy_(found[name])

    @property
    def is_of_peft(self) -> bool:
        """Whether its modules are adapters of peft, which `export` writes."""
        return isinstance(self.template.model, PeftModel)

    @property
    def _peft_model(self) -> PeftModel:
        if not self.is_of_peft:
            raise PerPEFTError("peft_type: only methods of peft have a file format of peft; this one has none")
        return self.template.model

    def _saved_tensors(self, group: int | None) -> dict[str, Tensor]:
        """The tensors themselves that a file of the module holds, under peft's names."""
        peft_model = self._peft_model
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


def _trainable_names(encoder: Encoder) -> dict[str, tuple[str, ...]]:
    """Name in a module of the bank -> all places of that tensor in the model (layers may share one)."""
    names = defaultdict(list)
    # Each layer once: a layer that two others hold would be swapped twice in a call, and not be restored after it.
    for path, module in encoder.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            if parameter.requires_grad:
                names[id(parameter)].append(name)
    return {_IN_ENCODER.sub("", same[0], count=1).replace(".", "/"): tuple(same) for same in names.values()}
