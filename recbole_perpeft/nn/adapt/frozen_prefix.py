"""What frozen blocks below the first adapted one make of every item, computed once."""

import functools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.nn.adapt.bank import AdapterBank
from recbole_perpeft.nn.adapt.tuning import first_block
from recbole_perpeft.pretrained.families import find, find_encoder
from recbole_perpeft.store.by_length import CHUNKS_AT_ONCE, encoded_by_length
from recbole_perpeft.store.rows import Layout, RowFiles, computed_rows

PREFIX = "_prefix"
ROWS_AT_ONCE = 16_384


class Inputs(Protocol):
    """Inputs of a foundation model (`recbole_perpeft.store.inputs.ContentCache`)."""

    n_rows: int

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """Inputs of rows, on the CPU."""
        ...

    def text_lengths(self, rows: Tensor) -> Tensor | None:
        """Tokens of each row's text, [n]; None where all rows are equally long to the encoder."""
        ...


class StoredBlock(nn.Module):
    """Stands for a frozen block: returns states that were stored instead of computing them.

    Args:
        block: The block, of which encoders may read more than its output.
        n_returned: How many values it returned; None for the states alone, not in a tuple.
    """

    def __init__(self, block: nn.Module, n_returned: int | None) -> None:
        super().__init__()
        for name, value in vars(block).items():  # ModernBERT asks a block for its kind of attention
            if isinstance(value, (str, int)) and name not in vars(self):
                setattr(self, name, value)
        self.n_returned = n_returned
        self.states: Tensor | None = None

    def forward(self, hidden: Tensor, *_unused: Any, **_also_unused: Any) -> Any:
        """The stored states; without any, what came in: blocks before the last stored one do no work."""
        states = hidden if self.states is None else self.states
        return states if self.n_returned is None else (states, *(None,) * (self.n_returned - 1))


class FrozenPrefix:
    """Stored states of the blocks of each tower that no adapter reaches.

    Blocks below the first adapted one give the same states in every step. They are computed once and kept in a file;
    the blocks themselves leave the model. Results stay the same.

    Args:
        bank: The adapted foundation model; its towers are changed.
        depths: Blocks to replace by kind of tower, as from `frozen_depths`; at least one.
        source: Inputs of the foundation model.
        cache_folder: Where the states go.
        inputs_fingerprint: Identifies content and processor.
        chunk_size: Items at once while the states are computed.
        show_progress: Whether to show a progress bar meanwhile.

    Raises:
        PerPEFTError: The disk does not take the states.
    """

    def __init__(
        self,
        bank: AdapterBank,
        depths: Mapping[str, int],
        source: Inputs,
        cache_folder: Path,
        inputs_fingerprint: str,
        chunk_size: int,
        show_progress: bool = True,
    ) -> None:
        blocks = {kind: _blocks(bank, kind) for kind in depths}
        last = {kind: blocks[kind][depth - 1] for kind, depth in depths.items()}
        probe = source.batch(torch.zeros(1, dtype=torch.long))
        outputs = _outputs(bank, last, probe)
        shapes = {kind: (source.n_rows, *_tensor_of(output).shape[1:]) for kind, output in outputs.items()}
        if "text" in shapes:  # the probe's text may be shorter than others
            shapes["text"] = (source.n_rows, _longest_text(source, shapes["text"][1]), shapes["text"][2])
        name = f"{inputs_fingerprint}-{bank.foundation_fingerprint}"
        self._names = {kind: f"states-of-{kind}-block-{depths[kind]}-{name}" for kind in shapes}
        layout: Layout = {self._names[kind]: ("<f4", tuple(shape[1:])) for kind, shape in shapes.items()}
        files = RowFiles(cache_folder, layout, source.n_rows)
        compute = functools.partial(_computed, bank, last, source, shapes, chunk_size, show_progress)
        self._states = computed_rows(files, "states of frozen blocks", compute)
        self._stored: dict[str, StoredBlock] = {}
        for kind, depth in depths.items():
            output = outputs[kind]
            n_returned = None if isinstance(output, Tensor) else len(output)
            stored = [StoredBlock(block, n_returned) for block in list(blocks[kind])[:depth]]
            for place, block in enumerate(stored):
                blocks[kind][place] = block
            self._stored[kind] = stored[-1]

    def batch(self, rows: Tensor, n_tokens: int) -> dict[str, Tensor]:
        """Stored states of rows, on the CPU, named `image_prefix` and `text_prefix`.

        Args:
            rows: [n].
            n_tokens: Length of the texts in this batch.
        """
        states = {kind: self._states.take(name, rows) for kind, name in self._names.items()}
        if "text" in states:
            states["text"] = states["text"][:, :n_tokens]
        return {kind + PREFIX: values for kind, values in states.items()}

    @contextmanager
    def supplied(self, inputs: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """Hands the states among `inputs` to the model for one call; gives the other inputs."""
        for kind, block in self._stored.items():
            block.states = inputs[kind + PREFIX]
        try:
            yield {name: tensor for name, tensor in inputs.items() if not name.endswith(PREFIX)}
        finally:
            for block in self._stored.values():
                block.states = None


def frozen_depths(bank: AdapterBank) -> dict[str, int]:
    """Number of blocks below the first adapted one, by kind of tower; towers without such a block are left out."""
    adapted = {id(module) for module in bank.adapted}
    depths = {kind: _frozen_depth(bank, kind, adapted) for kind in bank.template.kinds}
    return {kind: depth for kind, depth in depths.items() if depth}


def _frozen_depth(bank: AdapterBank, kind: str, adapted: set[int]) -> int:
    tower, family = find_encoder(bank.base_model, kind)
    if family.blocks is None:
        return 0
    depth = len(find(tower, family.blocks))
    names = [name for name, module in tower.named_modules() if id(module) in adapted]
    return min([depth, *(first_block(family, name, depth) for name in names)])


def _longest_text(source: Inputs, length: int) -> int:
    """Tokens that any text needs; `length` where all texts have that many to the encoder."""
    longest = 1
    for rows in torch.arange(source.n_rows).split(ROWS_AT_ONCE):
        lengths = source.text_lengths(rows)
        if lengths is None:
            return length
        longest = max(longest, int(lengths.max()))
    return longest


def _blocks(bank: AdapterBank, kind: str) -> nn.ModuleList:
    tower, family = find_encoder(bank.base_model, kind)
    return find(tower, str(family.blocks))


def _tensor_of(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


@torch.no_grad()
def _outputs(bank: AdapterBank, last: Mapping[str, nn.Module], batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the last frozen block of each tower returns."""
    outputs: dict[str, Any] = {}
    with ExitStack() as stack:
        for kind, block in last.items():

            def keep(_module, _inputs, output, kind=kind):
                outputs[kind] = output

            stack.callback(block.register_forward_hook(keep).remove)
        bank.template(**batch)
    return outputs


def _computed(
    bank: AdapterBank,
    last: Mapping[str, nn.Module],
    source: Inputs,
    shapes: Mapping[str, tuple[int, ...]],
    chunk_size: int,
    show_progress: bool,
) -> Iterator[list[Tensor]]:
    """States of all rows, chunk by chunk; tokens that a chunk's texts do not reach are zeros."""
    LOGGER.info(f"storing the states of frozen blocks of the tower(s) of {' and '.join(last)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bank.template.to(device)

    def encode(rows: Tensor) -> list[Tensor]:
        batch = {name: tensor.to(device) for name, tensor in source.batch(rows).items()}
        states = {kind: _tensor_of(output).float() for kind, output in _outputs(bank, last, batch).items()}
        if "text" in states:
            missing = shapes["text"][1] - states["text"].shape[1]
            states["text"] = nn.functional.pad(states["text"], (0, 0, 0, missing))
        return [states[kind] for kind in shapes]

    chunks = torch.arange(source.n_rows).split(CHUNKS_AT_ONCE * chunk_size)
    for rows in tqdm(chunks, desc="Encode frozen blocks", unit="chunk", disable=not show_progress):
        yield encoded_by_length(source, rows, chunk_size, encode)
