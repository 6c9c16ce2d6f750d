"""Item vectors of a trained model beside its checkpoint, so that whoever uses it encodes no catalogue."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from recbole_perpeft.core.digest import checksum
from recbole_perpeft.core.errors import PerPEFTError, one_line
from recbole_perpeft.core.files import check_regular
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.whole import written_whole
from recbole_perpeft.store.arrays import save_tensors

CATALOGUES_FILE = "catalogues.safetensors"
_OF = "of"  # the entry of the header that says what the vectors were computed from
_SUM = "crc32 of "


class _OutdatedError(Exception):
    """The file is whole, and of something else."""


class KeptCatalogues:
    """Item vectors by name in one file, which is believed only where nothing of it has changed.

    Args:
        path: The file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._told: set[str] = set()

    def read(self, name: str, of: str, shape: Sequence[int]) -> Tensor | None:
        """Vectors that were written under a name; None, and a line in the log, where they cannot be used.

        Args:
            name: As in `write`.
            of: Identifies what the vectors are computed from.
            shape: What they must have.
        """
        try:
            return self._checked(name, of, shape)
        except FileNotFoundError:
            why = "is missing"
        except _OutdatedError as error:
            why = str(error)
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:
            why = f"is damaged ({one_line(error)})"
        if why not in self._told:
            self._told.add(why)
            LOGGER.info(f"{self.path} {why}: item vectors are computed again")
        return None

    def _checked(self, name: str, of: str, shape: Sequence[int]) -> Tensor:
        check_regular(self.path)
        with safe_open(self.path, "pt") as file:
            header = file.metadata() or {}
            if header.get(_OF) != of:
                raise _OutdatedError("is of other weights, content or settings")
            if name not in file.keys():  # noqa: SIM118 - this is no mapping
                raise _OutdatedError(f"lacks {name}")
            # A copy: mapped memory may lie anywhere, and products with it differ in the last digit.
            vectors = file.get_tensor(name).clone()
        if vectors.dtype != torch.float32 or list(vectors.shape) != list(shape):
            raise ValueError("it holds vectors of another shape")
        if header.get(_SUM + name) != str(checksum([vectors.numpy()])):
            raise ValueError("it was changed after it was written")
        return vectors

    def write(self, of: str, catalogues: Mapping[str, Tensor]) -> None:
        """Replace the file; where the disk does not take it, there is none, and the log says so.

        Args:
            of: Identifies what the vectors are computed from.
            catalogues: float32 vectors by name, without gradients.
        """
        sums = {_SUM + name: str(checksum([vectors.cpu().numpy()])) for name, vectors in catalogues.items()}
        try:
            with written_whole(self.path) as draft:
                save_tensors(catalogues, draft, {_OF: of} | sums)
        except (PerPEFTError, SafetensorError) as error:
            LOGGER.warning(f"no item vectors are kept in {self.path}: {one_line(error)}")
