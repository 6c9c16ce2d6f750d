"""Turns a model that was trained with the code of PerPEFT's authors into a checkpoint of this package.

The tensors are copied as they are, so users get the scores that the original model gives them.
"""

from __future__ import annotations

import logging
import pickle
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recbole_perpeft.cli.flags import settings_of
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.models.perpeft.grouping import global_user_vectors, mean_vectors
from recbole_perpeft.nn.adapt.methods import peft_settings, read_peft_config
from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.run import create_dataset, data_preparation
from recbole_perpeft.training.checkpoint import model_state, save_checkpoint

HELP = """\
Turn a model that was trained with the code of PerPEFT's authors into a checkpoint of this package.

usage: python scripts/import_reference.py --folder=FOLDER --output=FILE [--dataset=NAME] [--key=value ...]

  --folder=FOLDER          holds sasrec_*.pth, projector_<name>.pth and folders clip_encoder_<name> (of peft's
                           save_pretrained). One projector with one adapter becomes GlobalPEFT, several become
                           PerPEFT: the last number in <name> is that of the group, and <name> = global, if there,
                           is the module of new users
  --output=FILE            the checkpoint to write
  --user_groups=FILE       with several groups: a line `user token <tab> group number` for each user
  --item_ids=FILE          a line `item token <tab> row in item_emb` for each item; by default the token is the row
  --dataset=NAME           the data set that the model was trained on, in the atomic files of RecBole
  --data_path=FOLDER       the folder that holds the data set's folder
  --foundation_model=NAME  the dual encoder: a hub id or a folder
  --n_heads=N              attention heads, which do not show in the tensors; default 4
  --key=value              any other setting, see python run_recbole.py --help
  -h, --help               this text

The checkpoint opens with recbole_perpeft.runs.run.load(FILE)."""

_OWN_FLAGS = ("folder", "output", "item_ids", "user_groups")
# How names of this package's state dicts become the authors'.
_SASREC_NAMES = {
    r"^position_embedding\.": "pos_emb.",
    r"^blocks\.(\d+)\.attention_norm\.": r"attention_layernorms.\1.",
    r"^blocks\.(\d+)\.attention\.": r"attention_layers.\1.",
    r"^blocks\.(\d+)\.feed_forward_norm\.": r"forward_layernorms.\1.",
    r"^blocks\.(\d+)\.feed_forward\.linear_([12])\.": r"forward_layers.\1.conv\2.",
    r"^last_norm\.": "last_layernorm.",
}
_PROJECTOR_NAMES = {r"^([013])\.": r"projector.\1.", r"^4\.": "last_layernorm."}
_ITEMS, _POSITIONS = "item_emb.weight", "pos_emb.weight"


@dataclass(frozen=True)
class ModuleFiles:
    """Files of one module: the projector's tensors and the adapter's folder."""

    projector: Path
    adapter: Path


@dataclass(frozen=True)
class ReferenceFiles:
    """Files of a model.

    Attributes:
        sasrec: Tensors of the user model and the item ids.
        groups: Files of each group by its number, in order of the numbers; empty for GlobalPEFT.
        global_module: Files of the module that all users share, or of new users; None if there is none.
    """

    sasrec: Path
    groups: dict[int, ModuleFiles]
    global_module: ModuleFiles | None

    @classmethod
    def find(cls, folder: Path) -> ReferenceFiles:
        """Looks for the files in a folder; PerPEFTError if some are missing or do not match."""
        if not folder.is_dir():
            raise PerPEFTError(f"there is no folder {folder}")
        sasrec = sorted(folder.glob("sasrec_*.pth"))
        if len(sasrec) != 1:
            names = ", ".join(path.name for path in sasrec)
            raise PerPEFTError(f"{folder} must hold one sasrec_*.pth, it holds {names or 'none'}")
        modules = _modules_by_name(folder)
        shared = modules.pop("global", None)
        if shared is None and len(modules) == 1:
            shared = modules.popitem()[1]
        return cls(sasrec[0], _by_number(modules), shared)

    @property
    def modules(self) -> list[ModuleFiles]:
        """Files of all modules."""
        return [*self.groups.values(), *([self.global_module] if self.global_module else [])]


def _modules_by_name(folder: Path) -> dict[str, ModuleFiles]:
    projectors = {path.stem.removeprefix("projector_"): path for path in folder.glob("projector_*.pth")}
    folders = filter(Path.is_dir, folder.glob("clip_encoder_*"))
    adapters = {path.name.removeprefix("clip_encoder_"): path for path in folders}
    lacking = [folder / f"clip_encoder_{name}" for name in sorted(projectors.keys() - adapters.keys())]
    lacking += [folder / f"projector_{name}.pth" for name in sorted(adapters.keys() - projectors.keys())]
    if lacking:
        raise PerPEFTError(
            f"{_some(lacking)} missing: projectors projector_<name>.pth and folders clip_encoder_<name> come in pairs"
        )
    if not projectors:
        raise PerPEFTError(f"{folder} holds no projector_<name>.pth with a folder clip_encoder_<name>")
    return {name: ModuleFiles(projectors[name], adapters[name]) for name in sorted(projectors)}


def _by_number(modules: Mapping[str, ModuleFiles]) -> dict[int, ModuleFiles]:
    groups: dict[int, ModuleFiles] = {}
    for name, files in modules.items():
        digits = re.findall(r"\d+", name)
        if not digits:
            raise PerPEFTError(f"{files.projector} has no number of a group in its name")
        if int(digits[-1]) in groups:
            first = groups[int(digits[-1])].projector
            raise PerPEFTError(f"{first} and {files.projector} have the same number, {digits[-1]}")
        groups[int(digits[-1])] = files
    return dict(sorted(groups.items()))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a state dict; nothing but tensors is unpickled. PerPEFTError if it holds anything else."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise PerPEFTError(f"{path} is damaged, or holds more than tensors; save the state_dict alone") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise PerPEFTError(f"{path} is no state dict: it must hold tensors by name")
    return tensors


def read_numbers(path: Path) -> dict[str, int]:
    """Reads lines `token <tab> number`; PerPEFTError for a line of another form, or with a token that is repeated."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PerPEFTError(f"cannot read {path}: {error}") from error
    numbers: dict[str, int] = {}
    for place, line in enumerate(lines, start=1):
        token, _, number = line.partition("\t")
        if not number.strip().isdecimal():
            raise PerPEFTError(f"{path}, line {place}: {line!r} is not of the form token <tab> number")
        if token in numbers:
            raise PerPEFTError(f"{path}, line {place}: {token!r} is there twice")
        numbers[token] = int(number)
    return numbers


def sizes_of(sasrec: Mapping[str, Tensor], path: Path) -> dict[str, int]:
    """Settings that show in the tensors of the user model; PerPEFTError if these tensors are missing."""
    for name in (_ITEMS, _POSITIONS):
        if name not in sasrec or sasrec[name].dim() != 2:
            raise PerPEFTError(f"{path} has no matrix {name}")
    layers = [int(found[1]) for name in sasrec if (found := re.match(r"attention_layers\.(\d+)\.", name))]
    if not layers:
        raise PerPEFTError(f"{path} has no attention_layers.0")
    return {
        "hidden_size": sasrec[_ITEMS].shape[1],
        "MAX_ITEM_LIST_LENGTH": len(sasrec[_POSITIONS]) - 1,
        "n_layers": max(layers) + 1,
    }


def item_rows(dataset, path: Path | None, n_rows: int, sasrec: Path) -> Tensor:
    """Row of each item in the reference's item table, [n_items]; the pad's is 0.

    Args:
        dataset: RecBole data set.
        path: File of item tokens and rows; None if the tokens are the rows.
        n_rows: Rows of the reference's item table, the pad included.
        sasrec: The table's file, for messages.

    Raises:
        PerPEFTError: The number of items differs, or an item has no row of its own.
    """
    tokens = dataset.field2id_token[dataset.iid_field][1:].tolist()
    if len(tokens) != n_rows - 1:
        raise PerPEFTError(f"{sasrec} has {n_rows - 1} items, the data set {dataset.dataset_name} has {len(tokens)}")
    given = {token: int(token) for token in tokens if token.isdecimal()} if path is None else read_numbers(path)
    source = f"the data set {dataset.dataset_name}" if path is None else str(path)
    remedy = "; give the rows with --item_ids" if path is None else ""
    lacking = [token for token in tokens if token not in given]
    if lacking:
        raise PerPEFTError(f"{source} gives no row of item_emb for {len(lacking)} items: {_some(lacking)}{remedy}")
    outside = [token for token in tokens if not 1 <= given[token] < n_rows]
    if outside:
        raise PerPEFTError(f"{source}: rows must lie between 1 and {n_rows - 1}, not so for {_some(outside)}{remedy}")
    rows = torch.tensor([0, *(given[token] for token in tokens)])
    shared = (torch.bincount(rows, minlength=n_rows) > 1).nonzero().flatten().tolist()
    if shared:
        raise PerPEFTError(f"{source}: several items have the same row: {_some(shared)}{remedy}")
    return rows


def user_groups(dataset, path: Path, numbers: Sequence[int]) -> Tensor:
    """Group of each user, [n_users], counted from 0 in the order of `numbers`; -1 for the pad.

    Raises:
        PerPEFTError: A user has no group, or a group no module or no user.
    """
    given = read_numbers(path)
    tokens = dataset.field2id_token[dataset.uid_field][1:].tolist()
    lacking = [token for token in tokens if token not in given]
    if lacking:
        raise PerPEFTError(f"{path} gives no group for {len(lacking)} users: {_some(lacking)}")
    used = {given[token] for token in tokens}
    if used - set(numbers):
        raise PerPEFTError(
            f"{path} names the groups {_some(sorted(used - set(numbers)))}, for which there is no projector; "
            f"there are {_some(numbers)}"
        )
    if set(numbers) - used:
        raise PerPEFTError(
            f"{path} gives no user of {dataset.dataset_name} to the groups {_some(sorted(set(numbers) - used))}"
        )
    place = {number: index for index, number in enumerate(numbers)}
    return torch.tensor([-1, *(place[given[token]] for token in tokens)])


def _some(values: Sequence) -> str:
    return ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")


def _in_reference_names(module: torch.nn.Module, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The module's own tensors under the authors' names."""
    tensors = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        for pattern, replacement in names.items():
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor
    return tensors


@torch.no_grad()
def copy_tensors(targets: Mapping[str, Tensor], found: Mapping[str, Tensor], source: Path) -> None:
    """Copies tensors to those of the same name; PerPEFTError if names or shapes differ."""
    if targets.keys() - found.keys():
        raise PerPEFTError(f"{source} lacks the tensors {_some(sorted(targets.keys() - found.keys()))}")
    if found.keys() - targets.keys():
        raise PerPEFTError(f"{source} has unknown tensors: {_some(sorted(found.keys() - targets.keys()))}")
    for name, target in targets.items():
        if found[name].shape != target.shape:
            raise PerPEFTError(
                f"{source}: {name} has the shape {tuple(found[name].shape)}, the model needs {tuple(target.shape)}"
            )
    for name, target in targets.items():
        target.copy_(found[name])


def _load_module(item_encoder: Any, group: int | None, files: ModuleFiles) -> None:
    projector = item_encoder.projectors["global" if group is None else str(group)]
    copy_tensors(_in_reference_names(projector, _PROJECTOR_NAMES), read_tensors(files.projector), files.projector)
    item_encoder.content_encoder.bank.load(files.adapter, group)


@torch.no_grad()
def _average_groups(item_encoder: Any, n_groups: int) -> None:
    """Makes the global module the mean of the groups' modules."""
    bank, projectors = item_encoder.content_encoder.bank, item_encoder.projectors
    means = [*bank.parameters_of(None), *projectors["global"].parameters()]
    groups = [[*bank.parameters_of(group), *projectors[str(group)].parameters()] for group in range(n_groups)]
    for mean, *parts in zip(means, *groups, strict=True):
        mean.copy_(torch.stack(parts).mean(0))


def _load_sasrec(model, sasrec: Mapping[str, Tensor], rows: Tensor, path: Path) -> None:
    # Convolutions of width 1 are matrices with one more axis.
    found = {name: tensor.squeeze(-1) if tensor.dim() == 3 else tensor for name, tensor in sasrec.items()}
    found[_ITEMS] = found[_ITEMS][rows]
    targets = _in_reference_names(model.user_encoder, _SASREC_NAMES)
    copy_tensors(targets | {_ITEMS: model.item_encoder.id_embedding.weight}, found, path)


def _place_groups(model, train_part) -> None:
    """Gives every group its centroid: the mean global user vector of its users, from their training items."""
    users = train_part.inter_feat[model.USER_ID]
    vectors = global_user_vectors(model, users.numpy(), train_part.phase_history)
    model.set_groups(model.user_group, mean_vectors(vectors, model.group_of(users), model.n_groups))


def _configuration(files: ReferenceFiles, sizes: Mapping[str, int], settings: Mapping[str, Any]) -> Config:
    peft_type, peft_config = peft_settings(read_peft_config(files.modules[0].adapter))
    derived = {
        "model": "PerPEFT" if files.groups else "GlobalPEFT",
        **sizes,
        "peft_type": peft_type,
        "peft_config": peft_config,
    }
    if files.groups:
        derived["n_groups"] = len(files.groups)
    for key in derived.keys() & settings.keys():
        raise PerPEFTError(f"leave out --{key}: it follows from the files ({derived[key]})")
    return Config(config_dict={**settings, **derived})


def import_reference(
    folder: Path,
    output: Path,
    item_ids: Path | None = None,
    user_groups_file: Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Config:
    """Writes a checkpoint that scores as a model trained with the authors' code.

    Args:
        folder: Files of the model, see `ReferenceFiles`.
        output: The checkpoint.
        item_ids: File of `item token <tab> row in item_emb`; None if the tokens are the rows.
        user_groups_file: File of `user token <tab> group number`; for PerPEFT only.
        settings: Further settings: `dataset`, `data_path`, `foundation_model`, `n_heads` ...

    Returns:
        The configuration of the new model.

    Raises:
        PerPEFTError: Files are missing, or do not fit each other or the data set.
    """
    if output.is_dir():
        raise PerPEFTError(f"--output={output} is a folder; name the checkpoint file, such as {output / 'best.pth'}")
    files = ReferenceFiles.find(folder)
    if bool(files.groups) != (user_groups_file is not None):
        need = "needs" if files.groups else "takes no"
        raise PerPEFTError(f"{folder} holds {len(files.groups) or 1} module(s) and {need} --user_groups")
    sasrec = read_tensors(files.sasrec)
    config = _configuration(files, sizes_of(sasrec, files.sasrec), settings or {})
    dataset = create_dataset(config)
    rows = item_rows(dataset, item_ids, len(sasrec[_ITEMS]), files.sasrec)
    groups = user_groups(dataset, user_groups_file, list(files.groups)) if user_groups_file else None
    train_part = data_preparation(config, dataset)[0].dataset
    model = config.model_class(config, train_part).to(config["device"]).eval()
    _load_sasrec(model, sasrec, rows, files.sasrec)
    if files.global_module:
        _load_module(model.item_encoder, None, files.global_module)
    if groups is not None:
        _load_groups(model, files, groups)
        _place_groups(model, train_part)
    stage = "global" if groups is None else "personalised"
    output.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(output, model_state(config, model) | {"extra": {"stage": stage}})
    return config


def _load_groups(model, files: ReferenceFiles, groups: Tensor) -> None:
    n_groups = len(files.groups)
    model.personalise(groups, torch.zeros(n_groups, model.group_centroids.shape[1]))
    for group, module in enumerate(files.groups.values()):
        _load_module(model.item_encoder, group, module)
    if files.global_module is None:
        _average_groups(model.item_encoder, n_groups)
        LOGGER.warning(
            f"{files.sasrec.parent} has no projector_global.pth and clip_encoder_global: the mean of the groups' "
            "modules stands in for the global module, so new users cannot be placed exactly"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Words after the program's name; by default those of the process.

    Returns:
        Exit status: 0, or 2 for wrong input, which is reported on one line of the standard error.
    """
    try:
        settings = settings_of(sys.argv[1:] if arguments is None else arguments)
        if settings.pop("help", False):
            print(HELP)
            return 0
        paths = {flag: Path(settings.pop(flag)) for flag in _OWN_FLAGS if flag in settings}
        for flag in ("folder", "output"):
            if flag not in paths:
                raise PerPEFTError(f"--{flag} is missing (see --help)")
        files = (paths["folder"], paths["output"], paths.get("item_ids"), paths.get("user_groups"))
        config = import_reference(*files, settings)
    except PerPEFTError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{config['model']} on {config['dataset']}: {paths['output']}")
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    sys.exit(main())
