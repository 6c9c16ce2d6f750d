"""Where attacks take place: small data, encoders, runs and caches that are copied before each of them."""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from random import Random
from unittest.mock import patch

import numpy as np

from recbole_perpeft.cli.main import main
from recbole_perpeft.store.rows import RowFiles
from recbole_perpeft.studies.compare import comparison
from recbole_perpeft.studies.compare.jobs.runs import Outcome, carry_out
from recbole_perpeft.studies.search.session import _Search
from support.attack.judge import Ending, fault_of_error, is_finite
from support.attack.judge import carry_out as end_of
from support.shop import SETTINGS


def words_of(settings: dict) -> list[str]:
    return [f"--{key}={value}" for key, value in settings.items()]


@contextmanager
def runs_here() -> Iterator[None]:
    """Runs of comparisons in this process, which starts none that would import everything anew."""

    def carry_out_here(jobs, n_parallel, when_done, start=None):
        outcomes = []
        for job in jobs:
            outcomes.append(Outcome(job, carry_out(job.folder, dict(job.settings))))
            when_done(outcomes[-1])
        return outcomes

    with patch.object(comparison, "carry_out_all", carry_out_here):
        yield


def in_one_process(words: Sequence[str]) -> int:
    """The command line, with runs of comparisons in this process and searches without trials."""
    with runs_here(), patch.object(_Search, "_run_trials", _no_trials):
        return main(words)


def _no_trials(*_: object) -> None:
    """In place of Ray."""


def arrays_of(folder: Path) -> dict[str, str]:
    """Digests of the values of arrays below a folder, in whatever order a file has them."""
    arrays = {path.name: np.load(path) for path in folder.rglob("*.npy")}
    described = {name: f"{array.dtype.str} {array.shape}".encode() for name, array in arrays.items()}
    return {name: hashlib.sha256(described[name] + array.tobytes()).hexdigest() for name, array in arrays.items()}


class Ground:
    """Makes inputs and runs commands on them.

    Args:
        root: an empty folder.
        data: of a small data set, `aspects`.
        encoder: folder of a small CLIP.
    """

    def __init__(self, root: Path, data: Path, encoder: Path):
        self.root, self.data, self.encoder = root, data, encoder

    def fresh(self) -> Path:
        """An empty folder for one input."""
        place = self.root / "place"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return place

    def with_data(self, place: Path) -> Path:
        """A copy of the data below a folder of inputs; gives the data set's folder."""
        return Path(shutil.copytree(self.data, place / "data" / "aspects"))

    def places(self, place: Path, mark: str = "") -> dict:
        data = place / "data" if (place / "data").exists() else self.data.parent
        return {"data_path": data, "cache_folder": place / f"cache{mark}", "runs_folder": place / f"runs{mark}"}

    def words(self, place: Path, mark: str = "", **settings) -> list[str]:
        return words_of(SETTINGS | self.places(place, mark) | settings)

    def judged(self, place: Path, words: Callable[[str], list[str]], names: Sequence[str]) -> tuple[Ending, str]:
        """Run a command twice, with folders of different marks: the same numbers, or one clear error."""
        ending = end_of(words(""), in_one_process)
        if ending.problem or ending.status:
            return ending, fault_of_error(ending, names) or self.litter(place) or "clear"
        if "run folder: " not in ending.out:
            return ending, "right"  # a help page or a report
        again = end_of(words("-again"), in_one_process)
        if again.status or again.problem:
            return ending, f"only at the second time: {again.problem or again.message}"
        if not is_finite(ending.numbers()):
            return ending, f"not finite: {ending.numbers()}"
        return ending, "right" if ending.numbers() == again.numbers() else "other numbers at the second time"

    def litter(self, place: Path) -> str:
        """What an error has left half-written."""
        left = [path for end in (".draft", ".partial", ".outdated") for path in place.rglob(f"*{end}")]
        return f"left behind: {left[0]}" if left else ""

    @cached_property
    def finished_run(self) -> Path:
        """A run of three epochs of which the record says that two are done."""
        folder = self.root / "finished" / "run"
        places = self.places(folder.parent)
        assert main(words_of(SETTINGS | places | {"model": "SASRec", "epochs": 2, "run_folder": folder})) == 0
        return folder

    @cached_property
    def compared(self) -> Path:
        """A folder with the runs of a comparison."""
        folder = self.root / "compared"
        folder.mkdir()
        ending = end_of(self.compare_words(folder), in_one_process)
        assert ending.status == 0, ending.err
        return folder

    def compare_words(self, place: Path, **more) -> list[str]:
        own = {"models": "Pop,BPR", "seeds": 1, "output": place / "report", "code_version": "x"}
        return ["compare", *self.words(place, **(own | more))]

    def cache_words(self, place: Path) -> list[str]:
        places = self.places(place)
        places.pop("runs_folder")
        encoders = {"text_encoder": self.encoder, "image_encoder": self.encoder}
        work = {"dataset": "aspects", "batch_size": 8, "device": "cpu", "layers": "full", "max_text_length": 12}
        return ["cache", *words_of(places | encoders | work)]

    @cached_property
    def states(self) -> Path:
        """A folder with caches of hidden states."""
        folder = self.root / "states"
        folder.mkdir()
        ending = end_of(self.cache_words(folder))
        assert ending.status == 0, ending.err
        return folder

    @cached_property
    def half_built(self) -> Path:
        """A folder with a build of hidden states that was interrupted."""
        folder = self.root / "half"
        folder.mkdir()

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        with patch.object(RowFiles, "sync", interrupt):
            assert end_of(self.cache_words(folder)).status == 130
        return folder

    @cached_property
    def content_caches(self) -> Path:
        """A folder with pixels, token ids and final vectors."""
        folder = self.root / "contents"
        folder.mkdir()
        ending = end_of(self.words(folder, model="GlobalPEFT", peft_type="none"))
        assert ending.status == 0, ending.err
        self.content_numbers = ending.numbers()
        return folder

    def file_of(self, rng: Random, folder: Path, *patterns: str) -> Path:
        """One of the files below a folder; each pattern is as likely."""
        found = [files for pattern in patterns if (files := sorted(folder.rglob(pattern)))]
        return rng.choice(rng.choice(found))
