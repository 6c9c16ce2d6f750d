"""The attacks by kind of input: each makes one input and tells what it is and how the command line ended on it."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pandas as pd
import yaml

from recbole_perpeft.cli.main import VERBS
from support.attack.ground import Ground, arrays_of, in_one_process, words_of
from support.attack.judge import Ending, carry_out, fault_of_error, is_finite
from support.attack.kinds import mutate_file, mutated_words
from support.attack.mutate import copied

Attack = Callable[[Ground, Random], tuple[str, str]]
ATTACKS: dict[str, Attack] = {}
SETTINGS = {
    "learning_rate": 0.001,
    "train_batch_size": 32,
    "eval_batch_size": 64,
    "seed": 3,
    "metrics": ["Hit", "NDCG"],
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": {"valid": "full", "test": "uni20"}},
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1, "alpha": 1.0},
    "user_inter_num_interval": "[2,inf)",
    "val_interval": None,
    "mask_history": "all",
    "stopping_step": 5,
    "clip_grad_norm": {"max_norm": 1.0},
    "weight_decay": 0.0,
    "MAX_ITEM_LIST_LENGTH": 10,
    "learner": "adam",
}
SPACE = {
    "learning_rate": {"loguniform": [1e-4, 1e-2]},
    "hidden_size": {"choice": [16, 32]},
    "n_layers": {"int": [1, 3]},
    "hidden_dropout_prob": {"uniform": [0.1, 0.5], "when": {"n_layers": 2}},
    "train_batch_size": 64,
}
_LIST = {
    "A": {"model": "Pop"},
    "B": {"model": "BPR", "embedding_size": 8},
    "C": {"model": "BPR", "learning_rate": 0.1},
}


def attack(kind: str) -> Callable[[Attack], Attack]:
    """Registers an attack."""

    def register(function: Attack) -> Attack:
        ATTACKS[kind] = function
        return function

    return register


def lost_rows(log: Path, ending: Ending) -> str:
    """Whether rows of a log are gone without a word."""
    rows = [line for line in log.read_bytes().replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")[1:] if line]
    text = (ending.folder / "run.log").read_text(encoding="utf-8")
    counted = int(text.split("The number of inters: ")[1].split()[0])
    return "" if counted == len(rows) or ending.told else f"{counted} of {len(rows)} rows, and no word"


@attack("inter")
def of_log(ground: Ground, rng: Random) -> tuple[str, str]:
    place = ground.fresh()
    log = ground.with_data(place) / "aspects.inter"
    what = mutate_file(rng, log)
    model = rng.choice(("Pop", "SASRec"))
    ending, end = ground.judged(place, lambda mark: ground.words(place, mark, model=model), [str(log.parent)])
    if end == "right" and model == "Pop":  # of sequences, it is targets that are counted
        end = lost_rows(log, ending) or end
    return f"{what}, {model}", end


@attack("item")
def of_items(ground: Ground, rng: Random) -> tuple[str, str]:
    return _of_content(ground, rng, "aspects.item")


@attack("photo")
def of_photos(ground: Ground, rng: Random) -> tuple[str, str]:
    return _of_content(ground, rng, "*.png")


def _of_content(ground: Ground, rng: Random, pattern: str) -> tuple[str, str]:
    place = ground.fresh()
    folder = ground.with_data(place)
    what = mutate_file(rng, ground.file_of(rng, folder, pattern))
    missing = rng.choice(("error", "error", "blank"))
    encoders = {"text_encoder": "aspects-clip", "image_encoder": "aspects-clip", "missing_content": missing}
    words = lambda mark: ground.words(place, mark, model="ContentKNN", **encoders)  # noqa: E731
    return f"{what}, {missing}", ground.judged(place, words, [str(folder)])[1]


@attack("user")
def of_users(ground: Ground, rng: Random) -> tuple[str, str]:
    place = ground.fresh()
    file = ground.with_data(place) / "aspects.user"
    what = mutate_file(rng, file)
    words = lambda mark: ground.compare_words(place, models="Pop", true_group_field="hidden_group")  # noqa: E731
    return what, ground.judged(place, words, [str(file.parent), "true_group_field"])[1]


@attack("encoder")
def of_encoders(ground: Ground, rng: Random) -> tuple[str, str]:
    place = ground.fresh()
    folder = Path(shutil.copytree(ground.encoder, place / "clip"))
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "*.safetensors")
    what = mutate_file(rng, ground.file_of(rng, folder, *names))
    encoders = {"model": "ContentKNN", "text_encoder": folder, "image_encoder": folder, "max_text_length": 12}
    return what, ground.judged(place, lambda mark: ground.words(place, mark, **encoders), [str(folder)])[1]


@attack("settings")
def of_settings(ground: Ground, rng: Random) -> tuple[str, str]:
    place = ground.fresh()
    what, file = _mutated_yaml(rng, place / "settings.yaml", SETTINGS)
    model = rng.choice(("Pop", "SASRec"))
    words = lambda mark: ground.words(place, mark, model=model, config_files=file)  # noqa: E731
    return f"{what}, {model}", ground.judged(place, words, _names_in(file, what))[1]


def _mutated_yaml(rng: Random, file: Path, content: dict) -> tuple[str, Path]:
    """Write a file and mutate it; what was done, and the file."""
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return mutate_file(rng, file), file


def _names_in(file: Path, what: str) -> list[str]:
    """The file, the keys that it has now and had before, and what was changed."""
    names = {str(file), file.name, *SETTINGS, *SPACE, *_LIST, *re.findall(r"\w{3,}", what), "Hit", "NDCG", "split"}
    if file.is_file() and not file.is_symlink():
        try:
            content = yaml.safe_load(file.read_bytes())
        except (yaml.YAMLError, ValueError):
            content = None
        names |= set(map(str, content)) - {""} if isinstance(content, dict) else set()
    return sorted(names)


@attack("list")
def of_lists(ground: Ground, rng: Random) -> tuple[str, str]:
    place = ground.fresh()
    what, file = _mutated_yaml(rng, place / "models.yaml", _LIST)
    words = lambda mark: ground.compare_words(place, models=f"@{file}")  # noqa: E731
    ending, end = ground.judged(place, words, _names_in(file, what))
    is_told = ending.status == 1 and "error: " not in ending.err and ": failed" in ending.err
    return what, "clear" if is_told else end  # one of the models failed, and is named


@attack("space")
def of_spaces(ground: Ground, rng: Random) -> tuple[str, str]:
    place = ground.fresh()
    what, file = _mutated_yaml(rng, place / "space.yaml", SPACE)
    searcher = rng.choice(("random", "grid", "tpe"))
    own = {"model": "SASRec", "search": file, "searcher": searcher, "output": place / "search"}
    names = [*_names_in(file, what), "searcher"]
    ending, end = ground.judged(place, lambda mark: ["search", *ground.words(place, **own)], names)
    if "no trial got as far" in ending.message:  # none was started
        end = "right"
    return f"{what}, {searcher}", end


@attack("resume")
def of_resumed_runs(ground: Ground, rng: Random) -> tuple[str, str]:
    finished, place = ground.finished_run, ground.fresh()
    folder = copied(finished, place / "run")
    names = ("config.yaml", "result.json", "metrics.csv", "environment.json", "best.pth", "last.pth", "*.parquet")
    what = mutate_file(rng, ground.file_of(rng, folder, *names))
    copied(folder, place / "run-again")
    words = lambda mark: [f"--resume={folder}{mark}", "--epochs=3"]  # noqa: E731
    names = [str(folder), str(ground.data), *_names_in(folder / "config.yaml", what)]
    return what, ground.judged(place, words, names)[1]


@attack("recommend")
def of_lists_from_runs(ground: Ground, rng: Random) -> tuple[str, str]:
    finished, place = ground.finished_run, ground.fresh()
    folder = copied(finished, place / "run")
    what = mutate_file(rng, ground.file_of(rng, folder, "best.pth"))
    user = (ground.data / "aspects.inter").read_text().splitlines()[1].split("\t")[0]
    ending = carry_out(["recommend", f"--model_file={folder}", f"--users={user}"])
    if ending.problem or ending.status:
        return what, fault_of_error(ending, [str(folder), *re.findall(r"\w{3,}", what)]) or "clear"
    scores = [line.split("\t")[-1] for line in ending.out.splitlines()[1:]]
    return what, "right" if scores and "nan" not in scores else f"these are lists: {ending.out}"


@attack("compare")
def of_compared_runs(ground: Ground, rng: Random) -> tuple[str, str]:
    """What is damaged is made anew, or told; the numbers stay."""
    finished, place = ground.compared, ground.fresh()
    shutil.rmtree(place)
    kept = pd.read_csv(finished / "report" / "quality.csv")
    copied(finished, place)
    names = ("result.json", "metrics.csv", "environment.json", "*.parquet")
    what = mutate_file(rng, ground.file_of(rng, place / "runs", *names))
    ending = carry_out(ground.compare_words(place), in_one_process)
    if ending.problem or ending.status:
        return what, fault_of_error(ending, [str(place / "runs")]) or "clear"
    now = pd.read_csv(place / "report" / "quality.csv")
    return what, "right" if now.equals(kept) else f"other numbers:\n{now}\n{kept}"


@attack("states")
def of_states(ground: Ground, rng: Random) -> tuple[str, str]:
    """Damaged rows are computed again, or told: arrays end as they were."""
    return _of_caches(ground, rng, ground.states, ("manifest.json", "*.npy"))


@attack("half-built")
def of_half_built_states(ground: Ground, rng: Random) -> tuple[str, str]:
    """The same for what an interrupted build left."""
    return _of_caches(ground, rng, ground.half_built, ("*.jsonl", "*.npy", "manifest.json"))


def _of_caches(ground: Ground, rng: Random, whole: Path, patterns: tuple[str, ...]) -> tuple[str, str]:
    good, place = arrays_of(ground.states), ground.fresh()
    shutil.rmtree(place)
    copied(whole, place)
    what = mutate_file(rng, ground.file_of(rng, place / "cache", *patterns))
    ending = carry_out(ground.cache_words(place))
    if ending.problem or ending.status:
        return what, fault_of_error(ending, [str(place / "cache")]) or "clear"
    now = arrays_of(place)
    return what, "right" if now == good else f"other arrays: {sorted(dict(now.items() ^ good.items()))}"


@attack("content")
def of_content_caches(ground: Ground, rng: Random) -> tuple[str, str]:
    """Pixels, token ids and final vectors of a run: the numbers stay."""
    whole, place = ground.content_caches, ground.fresh()
    shutil.rmtree(place)
    copied(whole, place)
    what = mutate_file(rng, ground.file_of(rng, place / "cache", "manifest.json", "*.npy", "content-vectors-*.npy"))
    ending = carry_out(ground.words(place, model="GlobalPEFT", peft_type="none"))
    if ending.problem or ending.status:
        return what, fault_of_error(ending, [str(place / "cache")]) or "clear"
    numbers = ending.numbers()
    return what, "right" if numbers == ground.content_numbers and is_finite(numbers) else f"other numbers: {numbers}"


@attack("table")
def of_tables(ground: Ground, rng: Random) -> tuple[str, str]:
    """Converted twice to the same files, and rows that are gone are told."""
    place = ground.fresh()
    suffix = rng.choice(("csv", "tsv", "jsonl", "parquet"))
    log = pd.DataFrame({"user_id": [f"u{row % 7}" for row in range(40)], "item_id": [row % 9 for row in range(40)]})
    log = log.assign(timestamp=range(1_600_000_000, 1_600_000_040), rating=[row % 5 + 1 for row in range(40)])
    items = pd.DataFrame({"item_id": range(9), "title": [f"thing {item}, “new”" for item in range(9)]})
    for name, table in (("log", log), ("items", items)):
        _write_table(table, place / f"{name}.{suffix}")
    names = [place / f"log.{suffix}", place / f"items.{suffix}"]
    what = mutate_file(rng, rng.choice(names))
    flags = {"input": names[0], "items": names[1], "rating_column": "rating"}
    endings = []
    for output in ("one", "two"):
        words = ["convert", "table", *words_of(flags | {"output": place / output / "shop"}), "--no_progress"]
        endings.append(carry_out(words))
    ending = endings[0]
    if ending.problem or ending.status:
        return what, fault_of_error(ending, [str(place)]) or "clear"
    first, second = ({file.name: file.read_bytes() for file in (place / one).rglob("*.i*")} for one in ("one", "two"))
    if first != second:
        return what, "other files at the second time"
    return what, _rows_are_told(names[0], first["shop.inter"].count(b"\n") - 1, ending)


def _write_table(table: pd.DataFrame, path: Path) -> None:
    if path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_dict("records")))
    else:
        table.to_csv(path, index=False, sep="," if path.suffix == ".csv" else "\t")


def _rows_are_told(log: Path, kept: int, ending: Ending) -> str:
    if log.suffix == ".parquet":
        rows = len(pd.read_parquet(log))
    else:
        lines = log.read_bytes().replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        rows = len([line for line in lines if line.strip()]) - (log.suffix != ".jsonl")
    if kept == rows or str(rows) in ending.out or ending.told:
        return "right"
    return f"{kept} of {rows} rows, and no word: {ending.out}"


@attack("words")
def of_words(ground: Ground, rng: Random) -> tuple[str, str]:
    """Command lines of all verbs."""
    finished, place = ground.finished_run, ground.fresh()
    train = ground.words(place, model="Pop", seed=3, learning_rate=0.1)
    lines = {
        "train": ["train", *train],
        "compare": ground.compare_words(place, models="Pop[learning_rate=0.1] as a, BPR"),
        "search": ["search", *ground.words(place, model="SASRec", output=place / "search", num_samples=2)],
        "cache": ground.cache_words(place),
        "recommend": ["recommend", f"--model_file={copied(finished, place / 'run')}", "--history=a b", "--k=3"],
        "convert": ["convert", "table", f"--input={ground.data / 'aspects.inter'}", f"--output={place / 'x'}"],
        "export": ["export", f"--model_file={place / 'run'}", f"--output={place / 'out'}"],
        "explain": ["explain", f"--model_file={place / 'run'}"],
        "aspects": ["aspects", f"--output={place / 'aspects'}", "--n_items=8", "--n_users=5"],
    }
    verb = rng.choice(sorted(lines))
    what, words = mutated_words(rng, lines[verb])
    ending = carry_out(words, in_one_process)
    if ending.problem or ending.status:
        given = [part for word in words for part in (word, *word.lstrip("-").partition("=")[::2]) if part]
        return what, fault_of_error(ending, [*given, *(f"--{word}" for word in ("model", "help")), *VERBS]) or "clear"
    return what, "right"
