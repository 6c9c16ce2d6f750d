"""What a GPU makes of training and evaluation: one page, a line a measurement.

    python benchmarks/gpu.py [--tiny] [--only=step,evaluation] [--items=15701]

By default at the size of PerPEFT's paper: CLIP ViT-B/32 with random weights, 15,701 items, 16 users a batch, LoRA of
rank 4, 8 groups; nothing is downloaded, and 2.4 GB of random photos are written below $TMPDIR and removed again.
`--tiny` is the same on a few kilobytes, for CPUs too. A section that fails is one line, and the exit status is then 1.

| section | what it measures |
|---|---|
| step | a training step beside the bare encoder, forward and backward, on the same distinct items; FLOP/s; memory |
| waits | places in a step where the host waits for the GPU |
| evaluation | ranking all users beside encoding the catalogue once a group; memory |
| same | losses and weights of steps that are taken twice from one state |
| resume | a run that is interrupted, beside one that is not |
| iisan, vip5 | a training step of these models |
"""

import copy
import os
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from train_step import encode_bare, evaluation_ratio, finished
from transformers import CLIPConfig, CLIPModel

from recbole_perpeft.data.aspects.catalogue import AspectsSettings, make_aspects
from recbole_perpeft.models.perpeft.grouping import random_groups
from recbole_perpeft.models.perpeft.model import PerPEFT
from recbole_perpeft.nn.adapt.bank import AdapterBank
from recbole_perpeft.nn.adapt.methods import PeftMethod
from recbole_perpeft.nn.content import AdaptedContent
from recbole_perpeft.nn.item_encoder import ItemEncoder
from recbole_perpeft.pretrained.dual import FoundationModel
from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.run import create_dataset, data_preparation, get_trainer, resume, run
from recbole_perpeft.training import checkpoint as checkpoints

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IS_CUDA = DEVICE.type == "cuda"
TEXT_LENGTH, END_OF_TEXT = 77, 49407
# Dense peaks of TFLOP/s by name of the GPU: bfloat16, float32 on tensor cores (TF32), float32.
PEAKS: dict[str, tuple[float, float, float]] = {
    "H100 PCIe": (756, 378, 51),
    "H100": (989, 494, 67),
    "H200": (989, 494, 67),
    "A100": (312, 156, 19.5),
}
PEAKS |= {"L4": (121, 60, 30), "A10": (125, 62, 31), "T4": (65, 8.1, 8.1)}
KINDS = ("bf16", "tf32", "fp32")


def tiny_clip() -> CLIPConfig:
    """A CLIP that takes a moment on a CPU."""
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPConfig(text_config=tower, vision_config=tower | {"image_size": 32, "patch_size": 16}, projection_dim=16)


class RandomPhotos:
    """Random pixels in a file and token ids, with titles as long as those of Scientific; a `ContentSource`."""

    def __init__(self, folder: Path, n_items: int, size: int) -> None:
        rng = np.random.default_rng(1)
        self.n_rows, self.identity = n_items, "random"
        pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, (n_items, 3, size, size))
        for start in range(0, n_items, 512):
            part = pixels[start : start + 512]
            part[:] = np.frombuffer(rng.bytes(part.size), np.uint8).reshape(part.shape)
        self._pixels = torch.from_numpy(np.asarray(np.load(folder / "pixels.npy", mmap_mode="c")))
        self._lengths = torch.from_numpy(np.clip(rng.lognormal(3.36, 0.4, n_items), 6, TEXT_LENGTH).astype(np.int64))
        mask = torch.arange(TEXT_LENGTH) < self._lengths.unsqueeze(1)
        self._ids = torch.from_numpy(rng.integers(5, 40_000, (n_items, TEXT_LENGTH))) * mask
        self._ids[torch.arange(n_items), self._lengths - 1] = END_OF_TEXT

    def rows_of(self, item_tokens) -> Tensor:
        """Items are named by their rows."""
        return torch.tensor([int(token) if str(token).isdigit() else -1 for token in item_tokens])

    def text_lengths(self, rows: Tensor) -> Tensor:
        """As in `ContentSource`."""
        return self._lengths[rows]

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """As in `ContentSource`."""
        length = int(self._lengths[rows].max())
        ids = self._ids[rows][:, :length].contiguous()
        mask = (torch.arange(length) < self._lengths[rows].unsqueeze(1)).long()
        return {"pixel_values": self._pixels[rows], "input_ids": ids, "attention_mask": mask}


class Shop:
    """A log, photos, and models on them.

    Args:
        root: A folder to write to.
        tiny: Whether all is small.
        n_items: Items in the catalogue.
    """

    def __init__(self, root: Path, tiny: bool, n_items: int) -> None:
        self.root, self.tiny, self.n_items = root, tiny, n_items
        self.n_users = 300 if tiny else 25_363
        self.steps = 3 if tiny else 12
        self.config = tiny_clip() if tiny else CLIPConfig()
        self._write_log()
        vision: Any = self.config.vision_config  # whose type says less than it has
        self.photos = RandomPhotos(root, n_items, vision.image_size)
        sizes = AspectsSettings(n_items=60, n_users=120) if tiny else AspectsSettings(n_items=400, n_users=800)
        make_aspects(root / "made" / "aspects", sizes, show_progress=False)

    def _write_log(self) -> None:
        rng = np.random.default_rng(0)
        users = np.repeat(np.arange(self.n_users), np.minimum(5 + rng.geometric(0.25, self.n_users), 40))
        items = (self.n_items * rng.random(len(users)) ** 1.7).astype(np.int64)
        items[: self.n_items] = rng.permutation(self.n_items)[: len(items)]  # every item is bought
        (self.root / "data" / "shop").mkdir(parents=True)
        rows = "".join(f"{u}\t{i}\t{t}\n" for t, (u, i) in enumerate(zip(users, items, strict=True)))
        header = "user_id:token\titem_id:token\ttimestamp:float\n"
        (self.root / "data" / "shop" / "shop.inter").write_text(header + rows)
        titles = "".join(f"{item}\tthing {item}\n" for item in range(self.n_items))
        (self.root / "data" / "shop" / "shop.item").write_text(f"item_id:token\ttitle:token_seq\n{titles}")

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Settings of a run on the shop."""
        places = {"data_path": str(self.root / "data"), "cache_folder": str(self.root / "cache"), "dataset": "shop"}
        return places | {"runs_folder": str(self.root / "runs"), "show_progress": False, "state": "ERROR"} | changes

    def build(self, model_class: type | str, **changes: Any) -> tuple:
        """Trainer with its model, and train and valid loader."""
        config = Config(model_class, config_dict=self.settings(**changes))
        config["checkpoint_dir"] = str(self.root / "built")
        torch.manual_seed(1)
        train, valid, _ = data_preparation(config, create_dataset(config))
        model = config.model_class(config, train._dataset).to(config["device"])
        return get_trainer(config)(config, model), train, valid

    def perpeft(self, **changes: Any) -> tuple:
        """PerPEFT with 8 random groups; as `build`."""
        shop = self

        class OnRandomPhotos(PerPEFT):
            """PerPEFT on a CLIP with random weights; all else is the product's."""

            def content_fields(self, config):
                return ("title",)

            def build_item_encoder(self, config, content, item_tokens):
                bank = AdapterBank(FoundationModel(CLIPModel(shop.config)), PeftMethod("lora"))
                rows, size = shop.photos.rows_of(item_tokens), config["encoder_chunk_size"]
                encoder = AdaptedContent(bank, shop.photos, rows, size, config["gradient_checkpointing"])
                return ItemEncoder(encoder, len(item_tokens), config["hidden_size"], 0.5, size)

        trainer, train, valid = self.build(OnRandomPhotos, **{"train_batch_size": 16} | changes)
        users = train.dataset.interactions.users
        groups = torch.full((trainer.model.n_users,), -1)
        groups[users] = torch.from_numpy(random_groups(len(users), 8, 1, seed=0))
        trainer.model.personalise(groups, torch.zeros(8, trainer.config["hidden_size"]))
        train.set_groups(groups)
        return trainer, train, valid


def endless(train) -> Iterator:
    """Batches of one epoch after the other."""
    while True:
        yield from train


@contextmanager
def precision(kind: str) -> Iterator[dict[str, Any]]:
    """Products of float32 as in `kind`; gives settings of a run."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    if IS_CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        yield {"enable_amp": kind == "bf16"}
    finally:
        torch.set_float32_matmul_precision(before)


def memory() -> str:
    """Most memory since `precision` began."""
    return f"{torch.cuda.max_memory_allocated() / 1e9:.2f} GB at most" if IS_CUDA else "memory: no GPU"


def speed(flops: float, seconds: float, kind: str) -> str:
    """FLOP/s, and their share of what the GPU can do."""
    name = torch.cuda.get_device_name() if IS_CUDA else ""
    peak = next((peaks[KINDS.index(kind)] for key, peaks in PEAKS.items() if set(key.split()) <= set(name.split())), 0)
    tera = flops / seconds / 1e12
    return f"{tera:.2f} TFLOP/s" + (f", {100 * tera / peak:.0f} % of {kind}" if peak else "")


def step_seconds(trainer, train, n: int) -> float:
    """Seconds of a step among n in a row, loading included, after two others."""
    trainer.model.train()
    batches = endless(train)
    for number in range(n + 2):
        if number == 2:
            began = finished(DEVICE)
        trainer._train_step([trainer._on_device(next(batches))], trainer.model.calculate_loss)
    return (finished(DEVICE) - began) / n


def section_step(shop: Shop) -> Iterator[str]:
    """A step beside the bare encoder; the goal is 1.10."""
    for kind, size in (("fp32", 64), ("tf32", 64), ("bf16", 64), ("bf16", 512)):
        with precision(kind) as how:
            trainer, train, _ = shop.perpeft(encoder_chunk_size=size, **how)
            seconds, model, bare, sizes = step_seconds(trainer, train, shop.steps), trainer.model, [], []
            text, batches, flops = memory(), endless(train), 0.0
            for number in range(shop.steps + 1):
                batch = next(batches)
                fields = (model.ITEM_SEQ, model.POS_ITEM_SEQ, model.NEG_ITEM_SEQ)
                items = torch.cat([batch[field].flatten() for field in fields]).unique()
                group = int(model.group_of(batch[model.USER_ID])[0])
                with torch.autocast(DEVICE.type, torch.bfloat16, enabled=how["enable_amp"]):
                    if not number:
                        with FlopCounterMode(display=False) as counter:
                            encode_bare(model.item_encoder.content_encoder, items, group, backward=True)
                        flops = counter.get_total_flops() / len(items)
                        continue
                    bare.append(encode_bare(model.item_encoder.content_encoder, items, group, backward=True))
                sizes.append(len(items))
            yield (
                f"{kind}, chunks of {size}: {1e3 * seconds:.1f} ms, {seconds / median(bare):.2f} of the bare encoder; "
                f"{median(sizes):.0f} items, {speed(flops * median(sizes), seconds, kind)}; {text}"
            )


def section_waits(shop: Shop) -> Iterator[str]:
    """Where the host waits; the goal is nowhere but at the check of the loss."""
    if not IS_CUDA:
        yield "no GPU that could be waited for"
        return
    trainer, train, _ = shop.perpeft(enable_amp=True)
    step_seconds(trainer, train, 1)
    batch = next(iter(train))
    found: Counter[str] = Counter()
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer._train_step([trainer._on_device(batch)], trainer.model.calculate_loss)
    torch.cuda.set_sync_debug_mode("default")
    found.update(f"{Path(one.filename).name}:{one.lineno}" for one in caught if "synchroniz" in str(one.message))
    places = ", ".join(f"{place} x{n}" for place, n in found.most_common(6))
    yield f"{sum(found.values())} in a step: {places or 'none'}"


def section_evaluation(shop: Shop) -> Iterator[str]:
    """All users, beside the catalogue once a group; the goal is 1.10."""
    for kind in ("fp32", "tf32"):
        with precision(kind) as how:
            trainer, _, valid = shop.perpeft(**how)
            ratio = evaluation_ratio(trainer.model, trainer, valid, n_rounds=2)
            yield f"{kind}: {ratio:.2f} of 8 bare passes, {shop.n_items} items, {shop.n_users} users; {memory()}"


def section_same(shop: Shop) -> Iterator[str]:
    """Steps that are taken twice."""
    for kind in ("fp32", "bf16"):
        with precision(kind) as how:
            trainer, train, _ = shop.perpeft(**how)
            state = copy.deepcopy(trainer.model.state_dict()), checkpoints.random_state(), train.get_state()
            found = []
            for _ in range(2):
                trainer.model.load_state_dict(state[0])
                trainer.optimizer = trainer._build_optimizer()
                checkpoints.set_random_state(state[1])
                train.set_state(state[2])
                trainer.model.train()
                batches = endless(train)
                step = trainer._train_step
                found.append([step([next(batches)], trainer.model.calculate_loss).item() for _ in range(shop.steps)])
            verdict = "equal" if found[0] == found[1] else f"NOT equal: {found}"
            yield f"{kind}: losses of {shop.steps} steps are {verdict}"


class _Stopped(Exception):
    """Ends a run as an interruption does."""


def section_resume(shop: Shop) -> Iterator[str]:
    """An interrupted run ends with the numbers of another one."""
    places = {
        "data_path": str(shop.root / "made"),
        "dataset": "aspects",
        "n_groups": 2,
        "epochs_global": 1,
        "epochs": 2,
    }

    def stop(epoch: int, _score: float) -> None:
        if epoch == 1:
            raise _Stopped

    whole = run("PerPEFT", config_dict=shop.settings(**places))
    with suppress(_Stopped):
        run("PerPEFT", config_dict=shop.settings(**places, run_folder=str(shop.root / "part")), callback_fn=stop)
    resumed = resume(shop.root / "part")
    yield f"test results are {'equal' if whole['test_result'] == resumed['test_result'] else 'NOT equal'}"


def section_iisan(shop: Shop) -> Iterator[str]:
    """On the bundled encoder's states."""
    yield from _step_of(shop, "IISAN")


def section_vip5(shop: Shop) -> Iterator[str]:
    """With the bundled language model."""
    yield from _step_of(shop, "VIP5")


def _step_of(shop: Shop, name: str) -> Iterator[str]:
    for kind in ("fp32", "bf16"):
        with precision(kind) as how:
            trainer, train, _ = shop.build(name, dataset="aspects", data_path=str(shop.root / "made"), **how)
            seconds = step_seconds(trainer, train, shop.steps)
            yield f"{kind}: {1e3 * seconds:.1f} ms a step of {trainer.config['train_batch_size']}; {memory()}"


SECTIONS: dict[str, Callable[[Shop], Iterator[str]]] = {
    "step": section_step,
    "waits": section_waits,
    "evaluation": section_evaluation,
    "same": section_same,
    "resume": section_resume,
    "iisan": section_iisan,
    "vip5": section_vip5,
}


def main(arguments: list[str]) -> int:
    """Prints the page; 1 if a section fails."""
    options = dict(argument[2:].partition("=")[::2] for argument in arguments)
    chosen = options["only"].split(",") if "only" in options else list(SECTIONS)
    if unknown := [name for name in chosen if name not in SECTIONS]:
        print(f"error: --only names {unknown[0]}: choose among {', '.join(SECTIONS)}", file=sys.stderr)
        return 2
    tiny, failed = "tiny" in options, False
    name = torch.cuda.get_device_name() if IS_CUDA else "no GPU"
    print(f"{'machine':<11} {name}, {os.cpu_count()} CPU threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        shop = Shop(Path(folder), tiny, int(options.get("items") or (200 if tiny else 15_701)))
        for section in chosen:
            began = perf_counter()
            try:
                for line in SECTIONS[section](shop):
                    print(f"{section:<11} {line}", flush=True)
                    failed |= "NOT equal" in line
            except Exception as error:  # the others are measured all the same
                failed = True
                place = traceback.extract_tb(error.__traceback__)[-1]
                print(
                    f"{section:<11} FAILED at {Path(place.filename).name}:{place.lineno}: {error!r}"[:300], flush=True
                )
            print(f"{section:<11} took {perf_counter() - began:.0f} s", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
