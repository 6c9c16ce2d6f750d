"""RecBole's trainers with safe checkpoints, exact resuming, a record of every epoch and evaluation by ranks."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from recbole.trainer import Trainer
from recbole.utils import dict2str, early_stopping, set_color
from torch.optim import Optimizer

from recbole_perpeft.core import compat
from recbole_perpeft.core.errors import PerPEFTError, one_line
from recbole_perpeft.core.whole import written_whole
from recbole_perpeft.data.evaluation import part_of
from recbole_perpeft.data.log import check_same_data
from recbole_perpeft.training import checkpoint as checkpoints
from recbole_perpeft.training.collector import RankCollector
from recbole_perpeft.training.optimisers import fused
from recbole_perpeft.training.steps import StepTrainer
from recbole_perpeft.training.trackers import Trackers, chosen_trackers
from recbole_perpeft.training.workers import ALONE, Workers, share_of_batches


@cache
def run_trainer(recbole_trainer: type[Trainer]) -> type[Trainer]:
    """A trainer class of RecBole on top of `RunTrainer` in place of RecBole's `Trainer`.

    What the class overrides itself stays overridden.

    Args:
        recbole_trainer: `Trainer` or a subclass.

    Raises:
        PerPEFTError: RecBole's trainers of decision trees are not based on `Trainer`.
    """
    if not issubclass(recbole_trainer, Trainer):
        raise PerPEFTError(f"{recbole_trainer.__name__} is not supported: train decision trees with RecBole itself")
    if issubclass(RunTrainer, recbole_trainer):
        return RunTrainer
    # Pre-training writes files of its own; RecBole's method would pickle the configuration.
    own = {"save_pretrained_model": RunTrainer.save_pretrained_model, "__module__": __name__}
    return type(recbole_trainer.__name__, (recbole_trainer, RunTrainer), own)


class RunTrainer(StepTrainer):
    """Trains a model inside a run folder.

    `best.pth` holds the best model, `last.pth` in addition what it takes to go on after the last finished epoch:
    optimisers, random generators, loader, early stopping, record. Both are written while the next epoch is trained.
    `metrics.csv` has a row an epoch.

    Subclasses may name a `stage`, and add to checkpoints with `extra_state` and `load_extra_state`. `fit` may be
    called several times, it goes on from `start_epoch`.

    Args:
        config: RecBole configuration; `checkpoint_dir` is the run folder.
        model: the model.
        workers: the processes that share the training, of which the first writes files.

    Attributes:
        stage: name of the training stage in the record.
        history: a row an epoch: stage, epoch, train_loss, train_seconds; if evaluated, metrics and valid_seconds.
        keeps_files: whether `fit` writes checkpoints. If not, the best model is kept in memory.
        trackers: who is told of every epoch.
    """

    stage = "train"
    best_valid_score: float
    best_valid_result: dict[str, float] | None
    cur_step: int

    def __init__(self, config, model, workers: Workers = ALONE) -> None:
        self.folder = Path(config["checkpoint_dir"])
        self.workers = workers
        has_events = workers.rank == 0 and "tensorboard" in chosen_trackers(config)
        with compat.tensorboard_in(self.folder / "tensorboard" if has_events else None):
            super().__init__(config, model)
        self.batches_a_step = max(1, config["batches_a_step"] or 0)
        self.eval_collector = RankCollector(config, workers)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.enable_scaler)
        self.saved_model_file = str(self.folder / "best.pth")
        self.last_file = self.folder / "last.pth"
        self.history: list[dict[str, Any]] = []
        self.keeps_files = True
        self.trackers = Trackers()
        self._data: dict[str, str] = {}
        self._best_in_memory: dict[str, Any] | None = None
        self._writer = checkpoints.CheckpointWriter()

    def extra_state(self) -> dict[str, Any]:
        """What checkpoints must hold besides tensors and RecBole's state: tensors and plain types."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Undo `extra_state`; called before the model's tensors are loaded."""

    def extra_result(self) -> dict[str, Any]:
        """What `result.json` says of a finished training beside what it says of every one."""
        return {}

    def stages(self, train_data, valid_data) -> Iterator[tuple[str, int]]:
        """Names and epochs of the stages of a training, each ready to be measured: what lies between two is done."""
        yield self.stage, self.epochs

    def fit(self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None):
        """Train from `start_epoch` to `epochs`, unless early stopping comes first.

        Args:
            train_data: train loader.
            valid_data: valid loader; None, or one without rows, trains all epochs and keeps the last one.
            verbose: whether to log every epoch.
            saved: whether this stage chooses the best model.
            show_progress: whether to show progress bars.
            callback_fn: called with epoch and valid score after each evaluation, when its checkpoints are written.

        Returns:
            The best valid score and the metrics of that epoch.
        """
        self.take_data(train_data)
        if self.config["train_neg_sample_args"].get("dynamic", False):
            train_data.get_model(self.model)
        # Processes that load batches are forked from this one, which should then have no other thread.
        with nullcontext() if self.config["worker"] else self._writer:
            for epoch in range(self.start_epoch, self.epochs):
                if self.cur_step > self.stopping_step:
                    break
                row = self._record_training(train_data, epoch, verbose, show_progress)
                evaluates = bool(valid_data) and self.eval_step > 0 and (epoch + 1) % self.eval_step == 0
                improved = not valid_data
                if evaluates:
                    improved = self._record_validation(row, valid_data, verbose, show_progress)
                self.start_epoch = epoch + 1
                self._writer.wait()
                if improved and saved:
                    self._save_checkpoint(epoch, verbose=verbose)
                self._finish_epoch(row, train_data)
                if evaluates and callback_fn:
                    self._writer.wait()
                    callback_fn(epoch, row[self.valid_metric])
        if saved and (self.best_valid_result is None or not self._has_best()):
            self._save_checkpoint(self.start_epoch - 1, verbose=verbose)
        return self.best_valid_score, self.best_valid_result

    def take_data(self, train_data) -> None:
        """What checkpoints say of the data, and metrics need of it: before anything is evaluated or written.

        Raises:
            PerPEFTError: the processes of the training read different data.
        """
        self._data = train_data._dataset.fingerprint
        if any(data != self._data for data in self.workers.gather(self._data)):
            raise PerPEFTError("the processes of the training read different data: let all read the same data_path")
        self.eval_collector.data_collect(train_data)

    def _record_training(self, train_data, epoch: int, verbose: bool, show_progress: bool) -> dict[str, Any]:
        began = perf_counter()
        losses = self._train_epoch(train_data, epoch, show_progress=show_progress)
        seconds = perf_counter() - began
        loss = sum(losses) if isinstance(losses, tuple) else losses
        self.train_loss_dict[epoch] = loss
        if verbose:
            self.logger.info(self._generate_train_loss_output(epoch, began, began + seconds, losses))
        self._add_train_loss_to_tensorboard(epoch, losses)
        return {"stage": self.stage, "epoch": epoch, "train_loss": loss, "train_seconds": round(seconds, 3)}

    def _record_validation(self, row: dict[str, Any], valid_data, verbose: bool, show_progress: bool) -> bool:
        """Evaluate, add the metrics to the epoch's row; whether the model is the best so far."""
        began = perf_counter()
        score, result = self._valid_epoch(valid_data, show_progress=show_progress)
        row |= {name: float(value) for name, value in result.items()}
        row["valid_seconds"] = round(perf_counter() - began, 3)
        improved = self._judge(score, result)
        self.tensorboard.add_scalar("Valid_score", score, row["epoch"])
        if verbose:
            time, name = set_color("time", "blue"), set_color("valid_score", "blue")
            heading = set_color(f"epoch {row['epoch']} evaluating", "green")
            self.logger.info(f"{heading} [{time}: {row['valid_seconds']:.2f}s, {name}: {score:f}]")
            self.logger.info(set_color("valid result", "blue") + ": \n" + dict2str(result))
            if self.cur_step > self.stopping_step:
                self.logger.info(f"Finished training, no better epoch in {self.cur_step} evaluations")
        return improved

    def _judge(self, score: float, result: dict[str, float]) -> bool:
        """Whether an evaluation is the best so far; it, and `cur_step` evaluations without a better one, are kept."""
        self.best_valid_score, self.cur_step, _, improved = early_stopping(
            score, self.best_valid_score, self.cur_step, max_step=self.stopping_step, bigger=self.valid_metric_bigger
        )
        if improved:
            self.best_valid_result = result
        return improved

    def _finish_epoch(self, row: dict[str, Any], train_data) -> None:
        self.history.append(row)
        self._save_last(train_data)
        self._writer.call(self._write_history)
        self.trackers.epoch(row)

    def _save_last(self, train_data) -> None:
        if self.keeps_files and self.workers.rank == 0:
            self._writer.write(self.last_file, self._state() | self._training_state(train_data))

    def _write_history(self) -> None:
        if self.workers.rank:
            return
        columns = list(dict.fromkeys(name for row in self.history for name in row))
        path = self.folder / "metrics.csv"
        with written_whole(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.history)

    @torch.no_grad()
    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        """Metrics of the model on a loader; arguments as in RecBole. `target_ranks` then has every target's rank."""
        if not eval_data:
            return None
        if load_best_model:
            self.load_model(model_file)
        if self.workers.size > 1:
            eval_data = part_of(eval_data, share_of_batches(len(eval_data), self.workers))
        if not eval_data:  # more processes than batches
            return self.evaluator.evaluate(self.eval_collector.get_data_struct())
        return super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)

    @property
    def target_ranks(self):
        """Ranks of the latest evaluation (`TargetRanks`); None where users had several targets."""
        return self.eval_collector.target_ranks

    def load_model(self, model_file: str | Path | None = None) -> None:
        """Load a checkpoint's model; without a file the best model of this training."""
        if model_file is None and self._best_in_memory is not None:
            self._load_model_state(self._best_in_memory, "memory")
            return
        self.workers.gather(None)  # the first process has written the file by now
        model_file = model_file or self.saved_model_file
        self._load_model_state(checkpoints.load_checkpoint(model_file, self.config["model"]), model_file)
        self.logger.info(f"Loading model structure and parameters from {model_file}")

    def resume_checkpoint(self, resume_file, train_data=None) -> None:
        """Go on from a checkpoint that `fit` wrote after an epoch, with the numbers of an uninterrupted training.

        Args:
            resume_file: a `last.pth`.
            train_data: train loader; its state is restored too.

        Raises:
            PerPEFTError: the checkpoint is of another model or of other data, or holds a model only.
        """
        content = checkpoints.load_checkpoint(resume_file, self.config["model"])
        if "optimizers" not in content:
            raise PerPEFTError(f"{resume_file} holds a model only: resume from the last.pth beside it")
        if train_data is not None:
            check_same_data(content.get("data", {}), train_data._dataset, resume_file, ("ids", "log"))
        self._load_model_state(content, resume_file)
        self._load_training_state(content, train_data, resume_file)
        # The run may have been killed between the checkpoint and the record of its last epoch.
        self._write_history()
        self.logger.info(f"Checkpoint loaded. Resume training from epoch {self.start_epoch}")

    def _load_model_state(self, content: dict[str, Any], source: str | Path) -> None:
        try:
            self.load_extra_state(content["extra"])
            self.model.load_state_dict(content["state_dict"])
        except (RuntimeError, KeyError, TypeError, AttributeError) as error:
            raise PerPEFTError(
                f"{source} does not fit the model; it was trained with other data or settings: {one_line(error)}"
            ) from error
        with checkpoints.restored(source, "other_parameter"):
            self.model.load_other_parameter(checkpoints.to_device(content["other_parameter"], self.device))

    def _load_training_state(self, content: dict[str, Any], train_data, source: str | Path) -> None:
        checkpoints.check_complete(content, source)
        self.start_epoch = content["epoch"] + 1
        self.cur_step = content["cur_step"]
        self.best_valid_score = content["best_valid_score"]
        self.best_valid_result = content["best_valid_result"]
        self.history = content["history"]
        # Loading may have changed which parameters the model has.
        self.optimizer = self._build_optimizer()
        with checkpoints.restored(source, "scaler"):
            self.scaler.load_state_dict(content["scaler"])
        with checkpoints.restored(source, "optimizers"):
            for name, state in content["optimizers"].items():
                if isinstance(state, str):
                    setattr(self, name, getattr(self, state))
                else:
                    checkpoints.load_optimizer(getattr(self, name), state)
        if train_data is not None:
            with checkpoints.restored(source, "loader"):
                checkpoints.set_loader_state(train_data, content["loader"])
        with checkpoints.restored(source, "random"):
            checkpoints.set_random_state(content["random"])

    def _build_optimizer(self, **kwargs):
        """As in RecBole, with `fused` kernels where they are asked for."""
        wants_fused = kwargs.pop("fused", self.config["fused"])
        optimizer = super()._build_optimizer(**kwargs)
        return fused(optimizer) if wants_fused else optimizer

    def _save_checkpoint(self, epoch, verbose=True, **kwargs) -> None:
        """Keep the model as the best one, in `best.pth` or in memory."""
        if not self.keeps_files:
            self._best_in_memory = checkpoints.copied(self._state(epoch))
            return
        if self.workers.rank:
            return
        path = Path(kwargs.pop("saved_model_file", self.saved_model_file))
        self._writer.write(path, self._state(epoch))
        if verbose:
            self.logger.info(set_color("Saving current", "blue") + f": {path}")

    def save_pretrained_model(self, epoch, saved_model_file) -> None:
        """Keep the state after pre-training (RecBole's two-stage models read it in their next run)."""
        checkpoints.save_checkpoint(Path(saved_model_file), self._state(epoch))
        self.saved_model_file = saved_model_file

    def _has_best(self) -> bool:
        found = self._best_in_memory is not None or Path(self.saved_model_file).is_file()
        return self.workers.gather(found)[0]

    def _state(self, epoch: int | None = None) -> dict[str, Any]:
        return {
            **checkpoints.model_state(self.config, self.model),
            "epoch": self.start_epoch - 1 if epoch is None else epoch,
            "cur_step": self.cur_step,
            "best_valid_score": float(self.best_valid_score),
            "best_valid_result": self.best_valid_result and dict(self.best_valid_result),
            "extra": self.extra_state(),
            "data": self._data,
        }

    def _training_state(self, train_data) -> dict[str, Any]:
        return {
            "optimizers": self._optimizer_states(),
            "scaler": self.scaler.state_dict(),
            "random": checkpoints.random_state(),
            "loader": checkpoints.loader_state(train_data),
            "history": self.history,
        }

    def _optimizer_states(self) -> dict[str, Any]:
        """State of every optimiser by attribute; an attribute that is another's synonym holds that one's name."""
        states: dict[str, Any] = {}
        names: dict[int, str] = {}
        for name, optimizer in reversed(self.__dict__.items()):
            if isinstance(optimizer, Optimizer):
                first = names.setdefault(id(optimizer), name)
                states[name] = optimizer.state_dict() if first == name else first
        return states

    def close(self) -> None:
        """Finish TensorBoard's files."""
        if np.isfinite(self.best_valid_score):
            self._add_hparam_to_tensorboard(self.best_valid_score)
        self.tensorboard.close()
