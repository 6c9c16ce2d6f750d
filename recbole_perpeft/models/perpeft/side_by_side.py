"""Independent groups that train side by side, each in a process of its own, and what they have left put together."""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from recbole.utils import calculate_valid_score
from torch import Tensor, nn
from torch.optim import Optimizer

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.models.perpeft.group_bests import GroupBests
from recbole_perpeft.models.perpeft.trainer import PerPEFTTrainer
from recbole_perpeft.nn.adapt.groups import group_state, load_group_state, parameters_of
from recbole_perpeft.training.checkpoint import load_checkpoint, restored, set_loader_state
from recbole_perpeft.training.optimisers import parts_of
from recbole_perpeft.training.workers import ALONE, Workers

__all__ = ["SideBySideTrainer", "folder_of_group"]

_GROUPS = "groups"


def folder_of_group(run_folder: Path, group: int) -> Path:
    """Where a group trains that trains by itself: a folder as that of a run."""
    return run_folder / _GROUPS / str(group)


class SideBySideTrainer(PerPEFTTrainer):
    """`PerPEFTTrainer` whose independent groups can train without each other, and end as if one process had trained.

    Attributes:
        train_groups: Lets each of some groups be trained by `fit_group` of a trainer of its own, which goes on from
            `last.pth` of `folder_of_group`, or else from that of the run; yields groups as they end. None trains all
            groups here.
    """

    def __init__(self, config, model, workers: Workers = ALONE) -> None:
        super().__init__(config, model, workers)
        self.train_groups: Callable[[Sequence[int]], Iterable[int]] | None = None

    def fit(self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None):
        """As in `PerPEFTTrainer`; groups that train elsewhere take their beginning from a file."""
        if self.train_groups is not None and self._freezes and not self.keeps_files:
            raise PerPEFTError(
                "groups_at_once: groups that train side by side begin with a checkpoint of the run, which this run "
                "does not write (saved); set groups_at_once to 1"
            )
        return super().fit(train_data, valid_data, verbose, saved, show_progress, callback_fn)

    def fit_group(self, group: int, train_data, valid_data) -> None:
        """Trains one group from where a checkpoint has left it; the others rest.

        Args:
            group: Its number.
            train_data: As for `fit`.
            valid_data: As for `fit`.
        """
        self.only_group, self._train_data = group, train_data
        self.group_bests.rest_but(group)
        self.cur_step = self.group_bests.waited_by_all()
        self.epochs += self.global_epochs
        train_data.set_groups(self.model.user_group, self.group_settings.group_negative_ratio)
        super()._fit_personalised(train_data, valid_data, saved=False, verbose=False)

    def _start_from_global_modules(self, valid_data, show_progress: bool) -> None:
        super()._start_from_global_modules(valid_data, show_progress)
        self._forget_groups()

    def _forget_groups(self) -> None:
        """What groups have left elsewhere is outdated, or here by now."""
        if self.workers.rank == 0:
            shutil.rmtree(self.folder / _GROUPS, ignore_errors=True)

    def _fit_personalised(self, train_data, valid_data, **arguments):
        goes_on = self.start_epoch < self.epochs and len(self.group_bests.finished()) < self.model.n_groups
        if self.train_groups is None or not goes_on:
            self._forget_groups()
            return super()._fit_personalised(train_data, valid_data, **arguments)
        self._save_last(train_data)
        *earlier, row = rows = self._collected(train_data, self.train_groups)
        for one in rows:
            self._add_train_loss_to_tensorboard(one["epoch"], one["train_loss"])
        for one in earlier:
            self.history.append(one)
            self.trackers.epoch(one)
        self._evaluate_bests(row, valid_data, arguments["show_progress"])
        self._save_checkpoint(max(*self.group_bests.epochs, self.global_epochs - 1), verbose=arguments["verbose"])
        self._finish_epoch(row, train_data)
        self._forget_groups()
        if arguments["callback_fn"]:
            arguments["callback_fn"](row["epoch"], self.best_valid_score)
        return self.best_valid_score, self.best_valid_result

    def _collected(self, train_data, train_groups: Callable[[Sequence[int]], Iterable[int]]) -> list[dict[str, Any]]:
        """Trains the groups that are not finished, and takes what they have left.

        Returns:
            A row an epoch, as in `history`.
        """
        first, history, bests = self.start_epoch, self.history, self.group_bests
        kept, rows, newest = _GroupStates(), list[dict[str, Any]](), dict[str, Any]()
        for group in bests.finished():
            kept.take(group, self.model, self.optimizer)
        sizes = np.bincount(self.model.user_group.cpu().numpy() + 1)[1:]
        unfinished = sorted(set(range(self.model.n_groups)) - bests.finished(), key=lambda group: -sizes[group])
        ended = [group for group in unfinished if self._has_ended(group)]
        for group in chain(ended, train_groups([group for group in unfinished if group not in ended])):
            self.group_bests = GroupBests(self.valid_metric_bigger, self.stopping_step)
            file = folder_of_group(self.folder, group) / "last.pth"
            content = load_checkpoint(file, self.config["model"])
            self._load_model_state(content, file)
            self._load_training_state(content, train_data, file)
            kept.take(group, self.model, self.optimizer)
            bests.take(group, self.group_bests)
            of_group = [row for row in self.history if row["epoch"] >= first]
            self._tell_of(group, of_group)
            rows += of_group
            newest = max(newest, content, key=lambda one: one.get("epoch", -1))
        kept.give(self.model, self.optimizer)
        set_loader_state(train_data, newest["loader"])
        self.start_epoch, self.history, self.group_bests = newest["epoch"] + 1, history, bests
        self.cur_step = bests.waited_by_all()
        return merged_rows(rows)

    def _has_ended(self, group: int) -> bool:
        """Whether a group has trained elsewhere as long as it may, before this run was interrupted."""
        file = folder_of_group(self.folder, group) / "last.pth"
        if not file.is_file():
            return False
        content, bests = load_checkpoint(file, self.config["model"]), GroupBests(True, self.stopping_step)
        with restored(file, "group_bests"):
            bests.load(content["group_bests"])
            return content["epoch"] + 1 >= self.epochs or bests.is_finished(group)

    def _tell_of(self, group: int, rows: Sequence[Mapping[str, Any]]) -> None:
        epoch = self.group_bests.best_epochs(self.global_epochs)[group]
        best = "keeps the global module" if epoch is None else f"best epoch {epoch}"
        seconds = sum(row["train_seconds"] + row.get("valid_seconds", 0.0) for row in rows)
        self.logger.info(
            f"group {group}: {best} of {len(rows)}, {self.valid_metric} {self.group_bests.scores[group]}, "
            f"{seconds:.0f} seconds"
        )

    def _evaluate_bests(self, row: dict[str, Any], valid_data, show_progress: bool) -> None:
        """The metrics of what each group keeps, into the row of an epoch."""
        began = perf_counter()
        with self.group_bests.in_place(self.model):
            result = self.evaluate(valid_data, load_best_model=False, show_progress=show_progress)
        self.best_valid_score, self.best_valid_result = calculate_valid_score(result, self.valid_metric), result
        row |= {name: float(value) for name, value in result.items()}
        row["valid_seconds"] = round(perf_counter() - began, 3)
        self.tensorboard.add_scalar("Valid_score", self.best_valid_score, row["epoch"])


class _GroupStates:
    """Latest modules of groups, and what an optimiser remembers of them."""

    def __init__(self) -> None:
        self._modules: dict[int, dict[str, Tensor]] = {}
        self._moments: dict[nn.Parameter, Any] = {}

    def take(self, group: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Keeps those of a group."""
        self._modules[group] = group_state(model, group)
        for parameter in parameters_of(model, group):
            for part in parts_of(optimizer):
                if parameter in part.state:
                    self._moments[parameter] = part.state[parameter]

    def give(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Puts all into a model and an optimiser of it."""
        for group, state in self._modules.items():
            load_group_state(model, group, state)
        for part in parts_of(optimizer):
            held = {parameter for group in part.param_groups for parameter in group["params"]}
            part.state.update({parameter: kept for parameter, kept in self._moments.items() if parameter in held})


def merged_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row an epoch of rows of groups, with the sum of their losses and of their seconds; without metrics."""
    found: dict[int, dict[str, Any]] = {}
    for row in rows:
        start = {"stage": row["stage"], "epoch": row["epoch"], "train_loss": 0.0, "train_seconds": 0.0}
        whole = found.setdefault(row["epoch"], start)
        whole["train_loss"] += row["train_loss"]
        whole["train_seconds"] = round(whole["train_seconds"] + row["train_seconds"], 3)
    return [found[epoch] for epoch in sorted(found)]
