"""PerPEFT's training step and evaluation beside the way of working of its authors, ingredient by ingredient.

    python benchmarks/naive.py [--quick] [--encoder=small] [--adapt_last=2] [--users=4 --items=100 --rounds=1]

Their code opens, decodes and resizes the photo and tokenises the title of each distinct item in every step, and of
each item for each group in every evaluation; it sorts ids out in Python loops, ranks users one by one, each with the
whole catalogue sorted, and passes through blocks that nothing adapts. Each line of the table has one more of these
than the line above it. Below theirs come two habits that they do not have but others do. Weights, log and photos are
the same for all lines, which take turns on the same batches; losses and ranks are compared before time is measured.

What the encoder computes is the same on both sides, and on a CPU it is most of the time. So two more comparisons leave
it out: what an encoder reads of a step's items, and ranks of all users with the catalogue's vectors at hand. Both have
limits; the last line is the worse of them, and exit status 1 says that one is above its limit. Seconds are those of
the processor: others may use the machine.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from train_step import encode_bare, prepared
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

from recbole_perpeft.data.aspects.catalogue import AspectsSettings, make_aspects
from recbole_perpeft.data.content import ItemContent
from recbole_perpeft.nn.content import ContentSource
from recbole_perpeft.nn.users.sasrec import left_pad
from recbole_perpeft.pretrained.locate import locate_foundation
from recbole_perpeft.pretrained.processor import Processor

LIMITS = {"inputs": 1 / 20, "ranking": 1 / 10}
N_GROUPS = 4
# Width, blocks and heads of both towers, side of a patch; photos of 224 px.
SHAPES = {"small": ((64, 4, 2), (64, 4, 2), 32), "vit-b-32": ((512, 12, 8), (768, 12, 12), 32)}


def write_encoder(name: str, folder: Path) -> str:
    """A CLIP with random weights for photos of 224 px, with the tokenizer of the bundled one; its folder."""
    bundled = locate_foundation("aspects-clip")
    config: Any = CLIPConfig.from_pretrained(bundled)  # whose towers' types say less than they have
    text, image, patch = SHAPES[name]
    for part, (width, depth, heads) in ((config.text_config, text), (config.vision_config, image)):
        part.hidden_size, part.intermediate_size = width, 4 * width
        part.num_hidden_layers, part.num_attention_heads = depth, heads
    config.vision_config.image_size, config.vision_config.patch_size = 224, patch
    config.projection_dim = config.text_config.projection_dim = config.vision_config.projection_dim = text[0]
    CLIPModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bundled).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    return str(folder)


class Files:
    """Photos and titles, read anew whenever they are asked for; a `ContentSource`."""

    def __init__(self, cache: ContentSource, content: ItemContent, processor: Processor) -> None:
        self.n_rows, self.identity, self.rows_of = cache.n_rows, cache.identity, cache.rows_of
        self._content, self._processor = content, processor

    def text_lengths(self, rows: Tensor) -> None:
        """Known after the titles are read: nothing is sorted by them."""

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """As in `ContentSource`."""
        return {"pixel_values": self.photos(rows)} | self.titles(rows)

    def photos(self, rows: Tensor) -> Tensor:
        """Opened, decoded and resized, [n, 3, H, W]."""
        pixels = []
        for row in rows.tolist():
            with Image.open(self._content.image_paths[row]) as photo:
                pixels.append(self._processor.image(photo.convert("RGB")))
        return torch.from_numpy(np.stack(pixels))

    def titles(self, rows: Tensor) -> dict[str, Tensor]:
        """Tokenised, and padded to the longest."""
        ids, mask = self._processor.text([self._content.titles[row] for row in rows.tolist()])
        longest = int(mask.sum(1).max())
        parts = {"input_ids": ids, "attention_mask": mask}
        return {name: torch.from_numpy(part[:, :longest].astype(np.int64)) for name, part in parts.items()}


class Naive:
    """A step and ranks, written as if nothing but the model were at hand.

    Args:
        model: Whose weights are used.
        apart: Whether negatives pass through the encoder apart from inputs and targets.
        repeated: Whether an item passes through it as often as it occurs.
    """

    def __init__(self, model, apart: bool = False, repeated: bool = False) -> None:
        self.model, self._apart, self._repeated = model, apart, repeated

    def loss(self, batch) -> Tensor:
        """As the model's own."""
        model, length = self.model, batch[self.model.ITEM_SEQ_LEN]
        fields = (model.ITEM_SEQ, model.POS_ITEM_SEQ, model.NEG_ITEM_SEQ)
        inputs, targets, negatives = (left_pad(batch[field], length) for field in fields)
        group = int(model.group_of(batch[model.USER_ID])[0])
        passes = [[inputs, targets], [negatives]] if self._apart else [[inputs, targets, negatives]]
        found = [vectors for parts in passes for vectors in self._vectors(parts, group)]
        hidden = model.user_encoder(found[0], inputs)
        right, wrong = ((hidden * vectors).sum(-1) for vectors in found[1:])
        real = targets != 0
        loss = functional.softplus(-right)[real].mean() + functional.softplus(wrong)[real].mean()
        weight = model.id_settings.id_embedding_reg
        return loss + weight * model.item_encoder.id_embedding.weight.norm() if weight else loss

    def _vectors(self, parts: Sequence[Tensor], group: int) -> list[Tensor]:
        """Vectors of the items in each slot."""
        slots = [row for part in parts for row in part.tolist()]
        items = [item for row in slots for item in row]
        if not self._repeated:
            items = sorted(set(items))
        vectors = self.model.item_encoder(torch.tensor(items), group)
        if self._repeated:
            places = torch.arange(len(items)).view(len(slots), -1)
        else:
            place = {item: number for number, item in enumerate(items)}
            places = torch.tensor([[place[item] for item in row] for row in slots])
        return list(vectors[places].split([len(part) for part in parts]))

    @torch.no_grad()
    def ranks(self, rows, seen: Sequence[set[int]], catalogues: dict[int, Tensor]) -> list[int]:
        """Rank of each row's target among the items that its user has not had."""
        model, found = self.model.eval(), []
        for number, had in enumerate(seen):
            row = rows[number : number + 1]
            catalogue = catalogues[int(model.group_of(row[model.USER_ID])[0])]
            history, target = left_pad(row[model.ITEM_SEQ], row[model.ITEM_SEQ_LEN]), int(row[model.ITEM_ID])
            scores = (model.user_encoder(catalogue[history], history)[:, -1] @ catalogue.T)[0].numpy()
            scores[[0, *had]] = -np.inf
            order = np.argsort(-scores)
            found.append(1 + int(np.flatnonzero(order == target)[0]))
        return found


class Case:
    """A model on photos, its trainer and loaders, and the same with one habit after the other.

    Args:
        folder: Where data, encoder and caches go.
        options: As from the command line.
    """

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        data = folder / "data" / "aspects"
        sizes = AspectsSettings(n_items=options.items, n_users=options.log_users, image_side=options.photo)
        make_aspects(data, sizes, show_progress=False)
        encoder = options.encoder
        if encoder in SHAPES:
            encoder = write_encoder(encoder, folder / "encoder")
        settings = {"dataset": "aspects", "show_progress": False, "use_gpu": False, "foundation_model": encoder}
        settings |= {"data_path": str(data.parent), "cache_folder": str(folder / "cache"), "n_groups": N_GROUPS}
        settings |= {"checkpoint_dir": str(folder), "train_batch_size": options.users, "min_group_size": 1}
        settings |= {"adapt_last": options.adapt_last, "state": "ERROR"}
        self.model, self.trainer, self.train, self.valid = prepared(settings)
        self.stores_blocks = options.adapt_last is not None
        self.whole, self.whole_trainer = self.model, self.trainer
        if self.stores_blocks:
            self.whole, self.whole_trainer, *_ = prepared(settings | {"cache_frozen_blocks": False})
            self.whole.load_state_dict(self.model.state_dict())
        tokens = self.train.dataset.field2id_token[self.model.ITEM_ID]
        content = ItemContent.load(data, "aspects", tokens[1:])
        self.cache = self.whole.item_encoder.content_encoder.source
        self.files = Files(self.cache, content, Processor.from_pretrained(encoder))
        self.rows, masked, *_ = self.valid.collate_fn(np.arange(len(self.valid._dataset)))
        self.seen: list[set[int]] = [set() for _ in range(len(self.rows))]
        for row, item in zip(masked[0].tolist(), masked[1].tolist(), strict=True):
            self.seen[row].add(item)

    def losses(self) -> dict[str, tuple[Any, Callable, bool]]:
        """Trainer, loss and whether photos and titles come from files, of each line of a step."""
        lines: dict[str, tuple[Any, Callable, bool]] = {"ours": (self.trainer, self.model.calculate_loss, False)}
        trainer, whole = self.whole_trainer, self.whole
        if self.stores_blocks:
            lines["+ all blocks, none stored"] = (trainer, whole.calculate_loss, False)
        lines |= {
            "+ photos and titles from files": (trainer, whole.calculate_loss, True),
            "+ ids in Python loops = the authors' way": (trainer, Naive(whole).loss, True),
            "+ negatives encoded apart": (trainer, Naive(whole, apart=True).loss, True),
            "+ an item as often as it occurs": (trainer, Naive(whole, apart=True, repeated=True).loss, True),
        }
        return lines

    def read(self, from_files: bool) -> None:
        """Where the model with all blocks finds its inputs from now on."""
        self.whole.item_encoder.content_encoder.source = self.files if from_files else self.cache

    def items_of(self, batch) -> Tensor:
        """Distinct items of a batch, without the pad."""
        fields = (self.model.ITEM_SEQ, self.model.POS_ITEM_SEQ, self.model.NEG_ITEM_SEQ)
        items = torch.cat([batch[field].flatten() for field in fields]).unique()
        return items[items > 0]

    def check_losses(self) -> float:
        """Greatest difference between the loss of a line and ours, without dropout."""
        batch, found = next(iter(self.train)), []
        self.model.eval(), self.whole.eval()
        with torch.no_grad():
            for _, loss, from_files in self.losses().values():
                self.read(from_files)
                found.append(float(loss(batch)))
        return max(abs(loss - found[0]) for loss in found)

    def step_times(self, rounds: int) -> tuple[dict[str, list[float]], list[float]]:
        """Seconds of each line and of the bare encoder in each round, after one that is not counted."""
        seconds: dict[str, list[float]] = {name: [] for name in self.losses()}
        bare: list[float] = []
        self.model.train(), self.whole.train()
        for number, batch in zip(range(rounds + 1), self.train, strict=False):
            for name, (trainer, loss, from_files) in self.losses().items():
                self.read(from_files)
                took = timed(partial(trainer._train_step, [batch], loss))
                seconds[name] += [took] * bool(number)
            group = int(self.model.group_of(batch[self.model.USER_ID])[0])
            content = self.model.item_encoder.content_encoder
            self.read(False)
            took = timed(partial(encode_bare, content, self.items_of(batch), group, backward=True))
            bare += [took] * bool(number)
        return seconds, bare

    def input_times(self, rounds: int) -> dict[str, list[float]]:
        """Seconds of making what an encoder reads of the items of a step."""
        ways = {"ours": self.cache.batch, "photos": self.files.photos, "titles": self.files.titles}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _, batch in zip(range(rounds), self.train, strict=False):
            rows = self.cache.rows_of(self.train.dataset.field2id_token[self.model.ITEM_ID])[self.items_of(batch)]
            for name, way in ways.items():
                seconds[name].append(timed(partial(way, rows)))
        return seconds

    def evaluations(self) -> dict[str, Callable[[], object]]:
        """What each line of an evaluation does, catalogue included."""

        def ours(model, trainer, from_files: bool) -> None:
            self.read(from_files)
            model.train()  # drops the catalogue's vectors
            trainer.evaluate(self.valid, load_best_model=False)

        def one_by_one() -> None:
            self.read(True)
            self.ranks_one_by_one(False)

        lines: dict[str, Callable[[], object]] = {"ours": lambda: ours(self.model, self.trainer, False)}
        if self.stores_blocks:
            lines["+ all blocks, none stored"] = lambda: ours(self.whole, self.whole_trainer, False)
        lines["+ photos and titles from files"] = lambda: ours(self.whole, self.whole_trainer, True)
        lines["+ users one by one = the authors' way"] = one_by_one
        return lines

    def ranks_one_by_one(self, kept: bool) -> list[int]:
        """Ranks in Python loops, with vectors that are kept or made now."""
        catalogues = {group: self.whole.catalogue(group, kept) for group in range(N_GROUPS)}
        return Naive(self.whole).ranks(self.rows, self.seen, catalogues)

    def ranking_times(self, rounds: int) -> tuple[list[float], list[float], int]:
        """Seconds of ranks with the catalogues at hand, ours and one by one; users whose ranks differ."""
        self.read(False)
        self.whole.load_state_dict(self.model.state_dict())
        self.model.eval(), self.whole.eval()
        ours, theirs, ranks = [], [], []
        for _ in range(rounds + 1):  # the first one fills the catalogues
            ours.append(timed(lambda: self.trainer.evaluate(self.valid, load_best_model=False)))
            theirs.append(timed(lambda: ranks.append(self.ranks_one_by_one(True))))
        differing = int((torch.tensor(ranks[-1]) != self.trainer.target_ranks.ranks.cpu()).sum())
        return ours[1:], theirs[1:], differing


def timed(work: Callable[[], object]) -> float:
    """Seconds of the processor for a call."""
    began = process_time()
    work()
    return process_time() - began


def print_lines(title: str, seconds: dict[str, list[float]]) -> None:
    """A line a way of working: median of seconds and of how often ours fits in."""
    print(f"{title:<44} seconds   times ours")
    for name, column in seconds.items():
        ratios = [one / ours for one, ours in zip(column, seconds["ours"], strict=True)]
        print(f"  {name:<42} {median(column):>7.3f}   {median(ratios):>10.1f}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 if a ratio is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few users and items, and one round")
    parser.add_argument("--encoder", default="aspects-clip", help=f"{', '.join(SHAPES)}, or a CLIP that is at hand")
    parser.add_argument("--adapt_last", type=int, help="adapted blocks of each tower; by default all")
    parser.add_argument("--photo", type=int, help="pixels of a side of a photo")
    parser.add_argument("--users", type=int, default=16, help="users of a step")
    parser.add_argument("--items", type=int, help="items of the catalogue")
    parser.add_argument("--log_users", type=int, help="users of the log")
    parser.add_argument("--rounds", type=int, help="measurements")
    options = parser.parse_args(arguments)
    sizes = {"items": 400, "log_users": 1500, "rounds": 7, "photo": 224}
    small = {"items": 40, "log_users": 150, "rounds": 1, "photo": 64} if options.quick else {}
    for name, value in (sizes | small).items():
        setattr(options, name, getattr(options, name) or value)
    with tempfile.TemporaryDirectory() as folder:
        case = Case(Path(folder), options)
        difference = case.check_losses()
        inputs = case.input_times(options.rounds)
        steps, bare = case.step_times(options.rounds)
        ours, theirs, differing = case.ranking_times(options.rounds)
        evaluations: dict[str, list[float]] = {}
        for _ in range(max(1, options.rounds // 3)):
            for name, work in case.evaluations().items():
                evaluations.setdefault(name, []).append(timed(work))
        n_items = median([len(case.items_of(batch)) for _, batch in zip(range(9), case.train, strict=False)])
    print(
        f"{options.encoder}, photos of {options.photo} px; losses differ by {difference:.1e}, ranks of "
        f"{differing} of {len(case.rows)} users"
    )
    print_lines(f"step of {options.users} users, {n_items:.0f} items", steps)
    print(f"  {'the bare encoder alone':<42} {median(bare):>7.3f}")
    print_lines(f"evaluation of {len(case.rows)} users, {options.items} items", evaluations)
    print(
        f"inputs of a step: from the cache {1e3 * median(inputs['ours']):.2f} ms, photos "
        f"{1e3 * median(inputs['photos']):.1f} ms, titles {1e3 * median(inputs['titles']):.1f} ms"
    )
    print(f"ranks with vectors at hand: {1e3 * median(ours):.1f} ms, one by one {1e3 * median(theirs):.1f} ms")
    from_files = [sum(pair) for pair in zip(inputs["photos"], inputs["titles"], strict=True)]
    ratios = {"inputs": ratio_of(inputs["ours"], from_files), "ranking": ratio_of(ours, theirs)}
    for name, ratio in ratios.items():
        print(f"naive_{name} ratio {ratio:.4f} limit {LIMITS[name]}")
    worst = max(LIMITS, key=lambda name: ratios[name] / LIMITS[name])
    print(f"naive_{worst} ratio {ratios[worst]:.4f} limit {LIMITS[worst]}")
    return int(ratios[worst] > LIMITS[worst])


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of ratios of each round."""
    return median(one / other for one, other in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    sys.exit(main())
