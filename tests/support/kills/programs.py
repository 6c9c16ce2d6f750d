"""What is killed: each program's command line, how it goes on, and what it must end with."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from support.attack.ground import words_of
from support.shop import PERPEFT, SETTINGS

Words = Callable[[Path], list[str]]
Ends = dict[str, object]
N_ITEMS = 100  # photos that are converted


@dataclass(frozen=True)
class Program:
    """A command in a folder of its own.

    Attributes:
        words: of the command line.
        marks: pattern of a path below the folder; when it is there, seconds begin.
        ends: what must not depend on interruptions, by name.
        resume: words that go on with it, where they are others; used once the path `begun` is there.
        begun: pattern of a path below the folder.
        worker: what the command line of a process holds that is killed instead; empty for the program itself.
        statuses: how the program may end when its worker was killed.
        share: of the kills, in comparison with others: what takes minutes gets less.
    """

    words: Words
    marks: str
    ends: Callable[[Path], Ends]
    resume: Words | None = None
    begun: str = ""
    worker: str = ""
    statuses: tuple[int, ...] = (0,)
    share: float = 1.0


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def files_in(place: Path, pattern: str) -> Ends:
    """Digests of files."""
    files = [path for path in sorted(place.glob(pattern)) if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(place)): digest(path.read_bytes()) for path in files}


def epochs_of(folder: Path) -> str:
    """The record of a run without its seconds."""
    return pd.read_csv(folder / "metrics.csv").drop(columns=["train_seconds", "valid_seconds"]).to_csv()


def run_in(folder: Path) -> Ends:
    """Metrics, record of the epochs, ranks, and tensors of the best and the last model."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    ends: Ends = {name: result[name] for name in ("best_valid_result", "test_result")}
    ends |= {"epochs": epochs_of(folder), "ranks": pd.read_parquet(folder / "test_ranks.parquet").to_csv()}
    for name in ("best.pth", "last.pth"):
        for key, value in torch.load(folder / name, weights_only=True)["state_dict"].items():
            if isinstance(value, torch.Tensor):
                ends[f"{name} {key}"] = digest(value.contiguous().numpy().tobytes())
    return ends


def runs_in(place: Path) -> Ends:
    folders = [path.parent for path in sorted(place.glob("runs/*/result.json"))]
    return {f"{folder.name} {name}": value for folder in folders for name, value in run_in(folder).items()}


def _comparison_in(place: Path) -> Ends:
    errors = {path.name: path.read_text() for path in place.glob("runs/*.error.txt")}
    return runs_in(place) | files_in(place, "report/quality.csv") | errors


def _search_in(place: Path) -> Ends:
    """Points, scores and epochs; the names of trials are drawn anew by every search."""
    table = pd.read_csv(place / "out" / "trials.csv")
    table = table[["status", "NDCG@10", "best_epoch", "epochs", "learning_rate"]].sort_values("learning_rate")
    result = json.loads((place / "out" / "result.json").read_text(encoding="utf-8"))
    epochs = sorted(epochs_of(path.parent) for path in place.glob("out/trials/*/run/metrics.csv"))
    return {"trials": table.to_csv(index=False), "test_result": result["test_result"], "epochs": epochs}


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


class Programs:
    """All programs, on small data.

    Args:
        data: folder of a small data set, `aspects`.
        encoder: folder of a small CLIP.
        inputs: an empty folder, for other inputs.
    """

    def __init__(self, data: Path, encoder: Path, inputs: Path):
        self._data, self._encoder, self._inputs = data, encoder, inputs
        (inputs / "space.yaml").write_text("learning_rate: {choice: [0.01, 0.05]}\n")
        photos = sorted((data / "images").iterdir())
        (inputs / "photos").mkdir()
        for item in range(N_ITEMS):
            shutil.copy(photos[item % len(photos)], inputs / "photos" / f"i{item}.png")
        log = [f"u{row % 9},i{row % N_ITEMS},{row}" for row in range(3 * N_ITEMS)]
        _write_lines(inputs / "log.csv", ["user_id,item_id,timestamp", *log])
        _write_lines(inputs / "items.csv", ["item_id,title", *(f"i{item},thing {item}" for item in range(N_ITEMS))])

    def by_name(self) -> dict[str, Program]:
        own = {"epochs": 3, "train_batch_size": 16, "learning_rate": 0.01}
        groups = PERPEFT | own | {"epochs_global": 1, "epochs": 2, "regroup_every": 1, "min_group_size": 4}
        t5 = {"tiny_width": 16, "tiny_inner_width": 32, "tiny_heads": 2, "tiny_layers": 1, "n_candidates": 4}
        t5 |= {"max_target_tokens": 8, "prompts_per_user": 1}
        side = self._encoders() | {"model": "IISAN", "max_text_length": 12}
        final = self._encoders() | {"model": "GlobalPEFT", "peft_type": "none", "max_text_length": 12}
        trial = {
            "model": "BPR",
            "search": self._inputs / "space.yaml",
            "searcher": "grid",
            "scheduler": "none",
            "epochs": 3,
        }
        both = own | {"models": "BPR,SASRec", "seeds": 1, "parallel": 2, "code_version": "x", "epochs": 6}
        compare = {"words": lambda place: self._compare(place, both), "marks": "runs/*/config.yaml"}
        search = {"words": lambda place: self._search(place, trial), "marks": "out"}
        search |= {"resume": lambda place: ["search", f"--resume={place / 'out'}"], "begun": "out/search.yaml"}
        return {
            "PerPEFT": self._train(groups, 3),
            "frozen groups": self._train(groups | {"shared_in_groups": "freeze", "regroup_every": 0}),
            "IISAN": self._train(SETTINGS | own | side),
            "VIP5": self._train(SETTINGS | own | t5 | {"model": "VIP5"}),
            "content": self._train(SETTINGS | final | {"epochs": 2}, marks="cache"),
            "cache": Program(self._cache, "cache", lambda place: files_in(place, "cache/*/*.npy")),
            "convert": Program(
                self._convert,
                ".shop.draft",
                lambda place: files_in(place, "shop/**/*"),
                resume=lambda place: [*self._convert(place), "--overwrite"],
                begun="shop",
            ),
            "compare": Program(ends=_comparison_in, share=0.8, **compare),
            "compare worker": Program(
                ends=_comparison_in, worker="compare.jobs.runs", statuses=(0, 1), share=0.8, **compare
            ),
            "search": Program(ends=_search_in, share=0.5, **search),
            "search worker": Program(ends=_search_in, worker="ray::ImplicitFunc", share=0.5, **search),
        }

    def _encoders(self) -> dict:
        return {"text_encoder": self._encoder, "image_encoder": self._encoder}

    def _places(self, place: Path) -> dict:
        return {"data_path": self._data.parent, "cache_folder": place / "cache"}

    def _train(self, settings: dict, share: float = 1.0, marks: str = "run") -> Program:
        return Program(
            words=lambda place: ["train", *words_of(settings | self._places(place) | {"run_folder": place / "run"})],
            marks=marks,
            ends=lambda place: run_in(place / "run") | files_in(place, "cache/**/*.npy"),
            resume=lambda place: [f"--resume={place / 'run'}"],
            begun="run/config.yaml",
            share=share,
        )

    def _cache(self, place: Path) -> list[str]:
        work = {"dataset": "aspects", "batch_size": 1, "device": "cpu", "layers": "full", "max_text_length": 12}
        return ["cache", *words_of(self._places(place) | self._encoders() | work), "--no_progress"]

    def _convert(self, place: Path) -> list[str]:
        own = {"input": self._inputs / "log.csv", "items": self._inputs / "items.csv", "workers": 2, "max_side": 16}
        words = words_of(own | {"images": self._inputs / "photos", "output": place / "shop"})
        return ["convert", "table", *words, "--no_progress"]

    def _compare(self, place: Path, settings: dict) -> list[str]:
        places = self._places(place) | {"runs_folder": place / "runs", "output": place / "report"}
        return ["compare", *words_of(SETTINGS | settings | places)]

    def _search(self, place: Path, settings: dict) -> list[str]:
        own = {"output": place / "out", "max_concurrent": 1}
        return ["search", *words_of(SETTINGS | settings | self._places(place) | own)]
