"""IISAN's cached training step beside the way of working of its authors, ingredient by ingredient.

    python benchmarks/naive_iisan.py [--quick] [--batch_size=64] [--rounds=5]

Their code keeps a file an item and encoder with the states of all 13 layers, opens it anew for each slot of a batch,
pads and repeated items too, encodes each of these slots, and masks what a user has in Python loops. Each line of the
table has one more of these than the line above it. States are random numbers in the sizes of BERT-base and ViT-base,
users and items those of `aspects`. Weights and batches are the same for all lines, which take turns; losses are
compared before time is measured. The last line is ours over theirs; exit status 1 if it is above its limit.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from iisan_step import prepared
from naive import print_lines, ratio_of, timed
from torch import Tensor
from torch.nn import functional

from recbole_perpeft.data.aspects.catalogue import AspectsSettings, make_aspects
from recbole_perpeft.nn.users.sasrec import left_pad

LIMIT = 1 / 5
N_LAYERS, KEPT = 13, (0, 2, 4, 6, 8, 10, 12)


class StateFiles:
    """A file an item and tower; what is read of it goes through the same side network.

    Args:
        folder: Where the files go.
        sources: States that are kept, as the model reads them; in files, noise stands for the layers between them.
        n_rows: Items.
    """

    def __init__(self, folder: Path, sources: Sequence, n_rows: int) -> None:
        self._folders = [folder / f"tower-{number}" for number in range(len(sources))]
        for source, place in zip(sources, self._folders, strict=True):
            place.mkdir()
            for row in range(n_rows):
                layers = torch.randn(N_LAYERS, source.width)
                layers[list(KEPT)] = source.states(torch.tensor([row]))[0].float()
                torch.save(layers, place / f"{row}.pt")

    def states(self, rows: Sequence[int]) -> list[Tensor]:
        """All layers of each slot, [n, 13, width] a tower; zeros for pads."""
        towers = []
        for place in self._folders:
            read = [torch.load(place / f"{max(row, 0)}.pt", weights_only=True) * (row >= 0) for row in rows]
            towers.append(torch.stack(read))
        return towers


class Naive:
    """A loss with some of their habits.

    Args:
        model: Whose weights are used.
        files: Read in each step; None takes states as the model does.
        repeated: Whether an item is encoded as often as it occurs, pads too.
        loops: Whether what a user has is masked in Python loops.
    """

    def __init__(self, model, files: StateFiles, repeated: bool = False, loops: bool = False) -> None:
        self.model, self._files, self._repeated, self._loops = model, files, repeated, loops

    def loss(self, batch) -> Tensor:
        """As the model's own."""
        model, length = self.model, batch[self.model.ITEM_SEQ_LEN]
        inputs, targets = (left_pad(batch[field], length) for field in (model.ITEM_SEQ, model.POS_ITEM_SEQ))
        rows = torch.cat([inputs, targets[:, -1:]], dim=1)  # (B, L + 1)
        items, place = (rows.flatten(), torch.arange(rows.numel())) if self._repeated else _distinct(rows)
        slots = self._vectors(items)[place].view(*rows.shape, -1)
        hidden = model.user_encoder(slots[:, :-1], inputs)
        log_p = model.log_popularity_of(None)(model.loss.popularity_power)
        scores = hidden.flatten(0, 1) @ slots.flatten(0, 1).T - log_p[rows.flatten()]  # (B L, B (L + 1))
        rejected = (_rejected_by_loops if self._loops else _rejected)(rows)
        learns = (targets != 0).flatten()
        labels = torch.arange(rows.numel()).view_as(rows)[:, 1:].flatten()
        return functional.cross_entropy(scores.masked_fill(rejected, -1e4)[learns], labels[learns])

    def _vectors(self, items: Tensor) -> Tensor:
        encoder, content = self.model.item_encoder, self.model.item_encoder.content_encoder
        towers = self._files.states((items - 1).tolist())
        vectors = content.networks.of(None)([states[:, list(KEPT)] for states in towers])
        real = (items > 0).unsqueeze(1)
        return encoder.content_weight * encoder.projectors.of(None)(vectors * real)


def _distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    items, place = rows.unique(return_inverse=True)
    return items, place.flatten()


def _rejected(rows: Tensor) -> Tensor:
    """Slots that are no candidates of each input slot, [B L, B (L + 1)]: pads, and what the row has but its target."""
    n_users, width = rows.shape
    has = (rows.unsqueeze(1) == rows.flatten().view(1, -1, 1).expand(n_users, -1, 1)).any(-1)  # (B, B (L + 1))
    rejected = (has | (rows.flatten() == 0)).repeat_interleave(width - 1, dim=0)
    slot = torch.arange(n_users * width).view(n_users, width)[:, 1:].flatten()
    rejected[torch.arange(len(rejected)), slot] = False
    return rejected


def _rejected_by_loops(rows: Tensor) -> Tensor:
    """The same."""
    n_users, width = rows.shape
    ids = rows.tolist()
    rejected = torch.zeros(n_users * (width - 1), n_users * width, dtype=torch.bool)
    flat = [item for row in ids for item in row]
    for user, row in enumerate(ids):
        of_user = [column for column, item in enumerate(flat) if item == 0 or item in row]
        for slot in range(width - 1):
            line = user * (width - 1) + slot
            for column in of_user:
                if column != user * width + slot + 1:
                    rejected[line, column] = True
    return rejected


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 if the ratio is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small batches, and one round")
    parser.add_argument("--batch_size", type=int, help="users of a step")
    parser.add_argument("--rounds", type=int, help="measurements")
    options = parser.parse_args(arguments)
    batch_size = options.batch_size or (16 if options.quick else 64)
    rounds = options.rounds or (1 if options.quick else 5)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"use_gpu": False, "state": "ERROR", "cache_folder": f"{folder}/cache"}
        if options.quick:
            make_aspects(Path(folder) / "aspects", AspectsSettings(n_items=60, n_users=60), show_progress=False)
            settings["data_path"] = folder
        model, trainer, train = prepared(batch_size, Path(folder), settings)
        files = StateFiles(Path(folder), model.item_encoder.content_encoder.sources, model.n_items - 1)
        lines: dict[str, Callable[..., Tensor]] = {
            "ours": model.calculate_loss,
            "+ a file an item, 13 layers": Naive(model, files).loss,
            "+ items as often as they occur, and pads": Naive(model, files, repeated=True).loss,
            "+ masks in Python loops = the authors' way": Naive(model, files, repeated=True, loops=True).loss,
        }
        batch = next(iter(train))
        model.eval()
        with torch.no_grad():
            losses = [float(loss(batch)) for loss in lines.values()]
        model.train()
        seconds: dict[str, list[float]] = {name: [] for name in lines}
        for number, batch in zip(range(rounds + 1), train, strict=False):  # the first one is not counted
            for name, loss in lines.items():
                took = timed(partial(trainer._train_step, [batch], loss))
                seconds[name] += [took] * bool(number)
    print(f"losses differ by {max(abs(loss - losses[0]) for loss in losses):.1e}")
    print_lines(f"step of {batch_size} users", seconds)
    ratio = ratio_of(seconds["ours"], list(seconds.values())[-1])
    print(f"naive_iisan ratio {ratio:.4f} limit {LIMIT}")
    return int(ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
