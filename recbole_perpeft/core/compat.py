"""What RecBole 1.2.0 needs to work beside current NumPy, SciPy and PyTorch.

Nothing else in the package knows about these gaps. An entry that fills a hole replaces nothing that exists, so a
release of RecBole that closes the hole makes the entry a no-op.

| RecBole 1.2.0 uses | gone since | what we do |
|---|---|---|
| `np.float`, `np.long`, `np.str`, ... | NumPy 1.24, `np.float_`: 2.0 | `apply` adds the missing names |
| `dok_matrix._update` (LightGCN, NGCF, NCL, ...) | SciPy 1.13 | `apply` adds the method |
| `torch.cuda.amp` (`NCLTrainer`) | deprecated in PyTorch 2.4 | `apply` silences the warning |
| chained `fillna(inplace=True)` | pandas 3 | `setup.py` asks for pandas 2, `apply` silences the warning |
| `torch.load` of a pickled config | refused since PyTorch 2.6 | `trainer/checkpoint.py`: tensors and plain types |
| anomaly detection, which importing SINE turns on | - | `recbole_model` turns it off again |
| `Pop` counts an item once a batch, and drawn negatives | - | `recbole_model` gives it an exact count |
| TensorBoard files below the working directory | - | `tensorboard_in` sends them to the run folder |
| `recbole.quick_start` (imports Ray, reads `sys.argv`) | - | `quick_start.py` is our own and never imports it |
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import dok_matrix

from recbole_perpeft.core.files import unlinked

_NUMPY_NAMES = {
    "bool": np.bool_,
    "int": np.int64,
    "float": np.float64,
    "complex": np.complex128,
    "object": np.object_,
    "str": np.str_,
    "long": np.int64,
    "unicode": np.str_,
}


def apply() -> None:
    """Make RecBole usable with the installed libraries. May be called any number of times."""
    for name, scalar_type in _NUMPY_NAMES.items():
        if name not in vars(np):
            setattr(np, name, scalar_type)
    if not hasattr(dok_matrix, "_update"):
        dok_matrix._update = _update_dok_matrix
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")


def _update_dok_matrix(matrix: dok_matrix, entries: Mapping[tuple[int, int], float]) -> None:
    """Set many entries without the checks of `dok_matrix.update`, as SciPy's private method did."""
    matrix._dict.update(entries)


def recbole_model(name: str) -> type:
    """A model class of RecBole; the name must exist.

    Importing any sequential model imports SINE, whose module turns on autograd's anomaly detection for the whole
    process, which slows down the training of every model.
    """
    from recbole.utils import get_model

    was_on = torch.is_anomaly_enabled()
    try:
        model = get_model(name)
    finally:
        torch.autograd.set_detect_anomaly(was_on)
    return _exact_pop(model) if name == "Pop" else model


@cache
def _exact_pop(recbole_pop: type) -> type:
    """`Pop` that counts every interaction: RecBole's indexed addition counts an item once a batch."""

    class Pop(recbole_pop):
        def __init__(self, config, dataset):
            super().__init__(config, dataset)
            self._label_field = config["LABEL_FIELD"]

        def calculate_loss(self, interaction):
            items = interaction[self.ITEM_ID]
            if self._label_field in interaction:
                items = items[interaction[self._label_field] > 0]
            self.item_cnt += torch.bincount(items, minlength=self.n_items).unsqueeze(1)
            self.max_cnt = self.item_cnt.max(dim=0)[0]
            return torch.nn.Parameter(torch.zeros(1)).to(self.device)

    return Pop


@contextmanager
def tensorboard_in(folder: Path | None) -> Iterator[None]:
    """Let trainers of RecBole made inside this context write TensorBoard events to `folder`, or with None nowhere.

    RecBole's trainers ask a module-level function for their writer; it would make `./log_tensorboard`.
    """
    from recbole.trainer import trainer

    original = trainer.get_tensorboard
    trainer.get_tensorboard = lambda logger: _NoEvents() if folder is None else events_in(folder)
    try:
        yield
    finally:
        trainer.get_tensorboard = original


class _NoEvents:
    """Takes what a writer of TensorBoard's events takes."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **named: None


def events_in(folder: Path) -> Any:
    """A writer of TensorBoard's events to a folder, which is made where it is missing.

    Raises:
        PerPEFTError: the folder is a link.
    """
    from torch.utils.tensorboard import SummaryWriter

    folder.mkdir(parents=True, exist_ok=True)
    os.close(unlinked(folder))
    return SummaryWriter(str(folder))
