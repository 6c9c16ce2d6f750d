"""Cost of a training step of IISAN over the bare work of its side network and user encoder, in one run.

    python benchmarks/iisan_step.py [--quick] [--key=value ...]

A step loads a batch, reads hidden states, computes the loss and its gradient, and updates the weights. The bare side
is forward and backward of side network, fusion and user encoder on the same items, their states ready in memory.
States are random numbers in the sizes of BERT-base and ViT-base (7 states of width 768, float16, mapped from a file),
items and users those of `aspects`. Both sides alternate. The last line is the worse of batch 64 and batch 512; exit
status 1 if it is above its limit.
"""

import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from recbole_perpeft.core.settings import settings_from
from recbole_perpeft.nn.item_encoder import ItemEncoder
from recbole_perpeft.nn.side_content import SideContent
from recbole_perpeft.nn.side_network import SideNetworkSettings
from recbole_perpeft.nn.users.sasrec import left_pad
from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.run import create_dataset, data_preparation, get_trainer

LIMIT = 1.3
BATCH_SIZES = (64, 512)


class RandomStates:
    """Hidden states like those of a base model, in a file."""

    n_states, width, fingerprint = 7, 768, "random"

    def __init__(self, path: Path, n_rows: int) -> None:
        values = np.random.default_rng(0).standard_normal((n_rows, self.n_states, self.width), dtype=np.float32)
        np.save(path, values.astype(np.float16))
        self._states = torch.from_numpy(np.load(path, mmap_mode="c"))

    def states(self, rows: torch.Tensor) -> torch.Tensor:
        return self._states[rows]


def prepared(batch_size: int, folder: Path, settings: dict):
    """Model, trainer and train loader."""
    defaults = {"dataset": "aspects", "show_progress": False, "checkpoint_dir": str(folder)}
    config = Config("IISAN", config_dict=defaults | settings | {"train_batch_size": batch_size})
    torch.manual_seed(config["seed"])
    train_data, *_ = data_preparation(config, create_dataset(config))
    model = config.model_class(config, train_data.dataset)
    # Of a source of states, a model with rows asks for states alone.
    sources: list[Any] = [RandomStates(folder / f"{name}.npy", model.n_items - 1) for name in ("text", "image")]
    rows = torch.arange(-1, model.n_items - 1)
    content = SideContent(sources, [rows, rows], settings_from(config, SideNetworkSettings))
    model.item_encoder = ItemEncoder(content, model.n_items, 64, 1.0, projector=nn.Linear, has_ids=False)
    model.to(config["device"])
    return model, get_trainer(config)(config, model), train_data


def finished(device: torch.device) -> float:
    """Time after everything that was sent to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def bare_seconds(model, batch) -> float:
    """Side network, fusion and user encoder, forward and backward, on ready states."""
    encoder, device = model.item_encoder, model.item_encoder.device
    item_seq = left_pad(batch[model.ITEM_SEQ], batch[model.ITEM_SEQ_LEN])
    targets = left_pad(batch[model.POS_ITEM_SEQ], batch[model.ITEM_SEQ_LEN])
    items, place = torch.unique(torch.cat([item_seq, targets[:, -1:]], dim=1), return_inverse=True)
    states = [source.states(items[items > 0] - 1).to(device).float() for source in encoder.content_encoder.sources]
    place, item_seq = place[:, :-1].to(device), item_seq.to(device)
    began = finished(device)
    vectors = encoder.projectors["global"](encoder.content_encoder.networks["global"](states))
    vectors = functional.pad(vectors, (0, 0, int(items[0] == 0), 0))
    model.user_encoder(functional.embedding(place, vectors), item_seq).sum().backward()
    seconds = finished(device) - began
    model.zero_grad(set_to_none=True)
    return seconds


def step_ratio(batch_size: int, n_steps: int, settings: dict) -> float:
    """Median over batches of the time of a step over that of the bare work."""
    ratios: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        model, trainer, train_data = prepared(batch_size, Path(folder), settings)
        model.train()
        while len(ratios) <= n_steps:
            batches = iter(train_data)
            for _ in range(len(train_data)):
                began = finished(trainer.device)
                batch = next(batches)
                trainer._train_step([batch], model.calculate_loss)
                step = finished(trainer.device) - began
                if len(batch) == batch_size:
                    ratios.append(step / bare_seconds(model, batch))
    return median(ratios[1:])


def main(arguments: list[str]) -> int:
    """Prints both ratios; 1 if one is above the limit."""
    settings = dict(argument[2:].split("=", 1) for argument in arguments if "=" in argument)
    n_steps = 8 if "--quick" in arguments else 40
    ratios = {f"iisan_step_{size}": step_ratio(size, n_steps, settings) for size in BATCH_SIZES}
    for name, ratio in ratios.items():
        print(f"{name} ratio {ratio:.3f} limit {LIMIT}")
    name = max(ratios, key=ratios.__getitem__)
    print(f"{name} ratio {ratios[name]:.3f} limit {LIMIT}")
    return int(ratios[name] > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
