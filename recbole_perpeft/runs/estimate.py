"""What a run will take, before it starts: from its data and model as they are, and a few measured steps.

As a program (`python -m recbole_perpeft.runs.estimate`) it reads settings from standard input and answers in JSON: the
memory is that of a process of its own, as a run of a comparison has.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from time import perf_counter
from typing import Any

from tabulate import tabulate

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.processes.children import child_environment
from recbole_perpeft.runs.build import build, get_trainer
from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.folder import peak_gpu_memory_mb, peak_memory_mb
from recbole_perpeft.runs.training import watched_part

_SECONDS, _LEAST_BATCHES = 5.0, 4  # of each part that is measured; the first batch warms up
_ROW_BYTES = 24  # of a row of ranks or ids on disk, where tokens are short
_EVENTS_MB = 0.05  # TensorBoard's events and the log


@dataclass
class Estimate:
    """What a run takes if all its epochs are trained; early stopping may end it sooner.

    Attributes:
        what: model and data set.
        launch: seconds until a process of its own can begin; 0 where it has begun.
        start: seconds of reading, of building the model and of stages between others, such as grouping.
        train: seconds of an epoch by stage, training alone.
        epochs: epochs by stage.
        evaluation: seconds of an evaluation by stage.
        n_evaluations: how many by stage, on the valid items; one more is on the test items.
        whole_evaluation: seconds of one that is not on a sample of the valid users (`eval_sample`).
        n_whole: how many of these there are beside that on the test items.
        save: seconds of writing the checkpoints after an epoch, by stage; they may pass beside the next epoch.
        memory_mb: peak memory of the process.
        gpu_memory_mb: PyTorch's peak on the GPU; None without one.
        disk_mb: what the run folder holds in the end.
        tested: whether there is an evaluation on the test items.
    """

    what: str
    launch: float = 0.0
    start: float = 0.0
    train: dict[str, float] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    evaluation: dict[str, float] = field(default_factory=dict)
    n_evaluations: dict[str, int] = field(default_factory=dict)
    whole_evaluation: float = 0.0
    n_whole: int = 0
    save: dict[str, float] = field(default_factory=dict)
    memory_mb: float = 0.0
    gpu_memory_mb: float | None = None
    disk_mb: float = 0.0
    tested: bool = True

    @property
    def seconds(self) -> float:
        """The whole run."""
        stages = sum(
            epochs * (self.train[stage] + self.save[stage]) + self.n_evaluations[stage] * self.evaluation[stage]
            for stage, epochs in self.epochs.items()
        )
        return self.launch + self.start + stages + (self.n_whole + self.tested) * self.whole_evaluation

    def table(self) -> str:
        """For the command line."""
        rows = [("start, and between stages", "", _time(self.start))]
        for stage, epochs in self.epochs.items():
            n_evaluations = self.n_evaluations[stage]
            rows += [
                (f"training ({stage})", f"{epochs} x {self.train[stage]:.2f} s", _time(epochs * self.train[stage])),
                (
                    f"evaluations ({stage})",
                    f"{n_evaluations} x {self.evaluation[stage]:.2f} s",
                    _time(n_evaluations * self.evaluation[stage]),
                ),
                (f"checkpoints ({stage})", f"{epochs} x {self.save[stage]:.2f} s", _time(epochs * self.save[stage])),
            ]
        if self.n_whole:
            n, one = self.n_whole + self.tested, self.whole_evaluation
            rows.append(("evaluations of all users", f"{n} x {one:.2f} s", _time(n * one)))
        rows += [("the run, without early stopping", "", _time(self.seconds)), ("memory", "", _size(self.memory_mb))]
        if self.gpu_memory_mb is not None:
            rows.append(("GPU memory", "", _size(self.gpu_memory_mb)))
        rows.append(("disk (run folder)", "", _size(self.disk_mb)))
        return f"{self.what}\n{tabulate(rows, tablefmt='plain')}"


def estimate_run(
    model: str | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    with_test: bool = True,
) -> Estimate:
    """Measure some steps of each part of a run; arguments as for `run.run`.

    The data are read and the model is built as a run does it; what is kept of content between runs is made where it is
    missing, once for all runs. Nothing is written to a run folder.

    Raises:
        PerPEFTError: wrong settings or data.
    """
    config = Config(model, dataset, config_file_list, dict(config_dict or {}) | {"trackers": None, "log_wandb": False})
    for key in ("nproc", "groups_at_once"):
        if (config[key] or 1) > 1:
            LOGGER.warning(f"the estimate is of one process: {key} {config[key]} is not counted")
    with tempfile.TemporaryDirectory() as folder:
        config["checkpoint_dir"] = folder
        return _measured(config, Path(folder), with_test)


def _measured(config: Config, folder: Path, with_test: bool) -> Estimate:
    began = perf_counter()
    dataset, (train_data, valid_data, test_data), network = build(config)
    trainer = get_trainer(config)(config, network)
    trainer.eval_collector.data_collect(train_data)
    if config["train_neg_sample_args"].get("dynamic", False):
        train_data.get_model(network)
    found = Estimate(f"{config['model']} on {config['dataset']}", tested=with_test and bool(test_data))
    whole = valid_data or test_data
    watched = watched_part(config, train_data, valid_data, test_data) or test_data
    for stage, epochs in trainer.stages(train_data, valid_data):
        found.start += perf_counter() - began
        found.epochs[stage] = epochs
        found.train[stage] = seconds_of(train_data, lambda loader: trainer._train_epoch(loader, 0))
        found.evaluation[stage] = 0.0
        if watched:
            found.evaluation[stage] = seconds_of(watched, lambda loader: trainer.evaluate(loader, False))
        found.whole_evaluation = found.evaluation[stage]
        if watched is not whole:
            found.whole_evaluation = seconds_of(whole, lambda loader: trainer.evaluate(loader, False))
            found.n_whole = 1
        evaluates = bool(valid_data) and config["eval_step"] > 0
        found.n_evaluations[stage] = epochs // config["eval_step"] if evaluates else 0
        began = perf_counter()
        with trainer._writer:
            trainer._save_checkpoint(0, verbose=False)
            trainer._finish_epoch({"stage": stage, "epoch": 0, "train_loss": 0.0, "train_seconds": 0.0}, train_data)
        found.save[stage] = perf_counter() - began
        began = perf_counter()
    found.start += perf_counter() - began
    trainer.close()
    found.memory_mb, gpu = peak_memory_mb(), peak_gpu_memory_mb(config["device"])
    found.gpu_memory_mb = None if gpu is None else gpu["allocated"]
    n_rows = dataset.user_num + dataset.item_num + (len(test_data._dataset) if test_data else 0)
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    found.disk_mb = (written + n_rows * _ROW_BYTES) / 1e6 + _EVENTS_MB
    return found


def seconds_of(loader: Any, work: Callable[[Any], Any]) -> float:
    """Seconds of work on all batches of a loader, from the first of them where there are many.

    Args:
        loader: one of ours or RecBole's.
        work: is given the loader, or one like it with fewer batches.
    """
    marks: list[float] = []  # when each batch was there, before its work

    def some(batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            marks.append(perf_counter())
            if len(marks) > _LEAST_BATCHES and marks[-1] - marks[0] > _SECONDS:
                return
            yield batch

    def numbered(_own: Any, numbers: Sequence[int], *others: Any) -> Iterator[Any]:
        for _, batch in zip_longest(numbers, some(loader.numbered(numbers, *others))):
            yield batch  # None for those that are not made any more

    short = copy.copy(loader)
    own = {"__iter__": lambda _: some(loader), "numbered": numbered}
    short.__class__ = type(type(loader).__name__, (type(loader),), own)
    began = perf_counter()
    work(short)
    ended, n_batches = perf_counter(), len(loader)
    if len(marks) >= n_batches:
        return ended - began
    each = (marks[-1] - marks[1]) / (len(marks) - 2)  # what the first one takes, it takes once
    return (marks[1] - began) + each * (n_batches - 1) + (ended - marks[-1])


def estimate_apart(settings: Mapping[str, Any], with_test: bool = True) -> Estimate:
    """`estimate_run` in a process of its own.

    Args:
        settings: all settings of the run, as plain types.
        with_test: whether the run ends with an evaluation on the test items.

    Raises:
        PerPEFTError: wrong settings or data, or the process ended without an answer.
    """
    order = json.dumps({"settings": dict(settings), "with_test": with_test})
    command = [sys.executable, "-m", "recbole_perpeft.runs.estimate"]
    began = perf_counter()
    done = subprocess.run(command, input=order, capture_output=True, text=True, env=child_environment())
    whole = perf_counter() - began
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = " / ".join(done.stderr.strip().splitlines()[-3:])
        raise PerPEFTError(f"no estimate: its process ended with status {done.returncode}: {last}") from None
    if "error" in answer:
        raise PerPEFTError(answer["error"])
    return Estimate(**answer["estimate"], launch=whole - answer["seconds"])


def sum_table(rows: Sequence[tuple[Estimate, int]], at_once: int) -> str:
    """The sum over runs, for the command line.

    Args:
        rows: what a run takes, and how many there are of it.
        at_once: how many run at a time.
    """
    heading = ("run", "runs", "a run", "all", "memory", "disk")
    lines = [
        (one.what, n, _time(one.seconds), _time(n * one.seconds), _size(one.memory_mb), _size(n * one.disk_mb))
        for one, n in rows
    ]
    seconds = sum(n * one.seconds for one, n in rows) / at_once
    memory = sum(sorted((one.memory_mb for one, n in rows for _ in range(min(n, at_once))), reverse=True)[:at_once])
    disk = sum(n * one.disk_mb for one, n in rows)
    how = f"all, {at_once} at a time" if at_once > 1 else "all, one after the other"
    lines.append((how, sum(n for _, n in rows), "", _time(seconds), _size(memory), _size(disk)))
    return tabulate(lines, headers=heading, tablefmt="plain")


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(megabytes: float) -> str:
    return f"{megabytes:,.1f} MB" if megabytes < 100 else f"{megabytes:,.0f} MB"


def work() -> int:
    """The program: reads an order from standard input; answers an estimate and its own seconds, or what is wrong."""
    began = perf_counter()
    order = json.loads(sys.stdin.readline())
    with redirect_stdout(sys.stderr):
        try:
            found = asdict(estimate_run(config_dict=order["settings"], with_test=order["with_test"]))
            del found["launch"]
            answer = {"estimate": found, "seconds": perf_counter() - began}
        except PerPEFTError as error:
            answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(work())
