"""Content vectors of items from side networks on cached hidden states: no backbone in memory."""

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.nn.adapt.groups import GroupModules
from recbole_perpeft.nn.content import rows_digest
from recbole_perpeft.nn.side_network import SideNetwork, SideNetworkSettings

_TOKENS_AT_ONCE = 1024


class StateSource(Protocol):
    """Hidden states of one backbone for all items (`recbole_perpeft.store.states.HiddenStateCache`)."""

    n_states: int
    width: int
    fingerprint: str

    @property
    def identity(self) -> str:
        """Identifies the states, and with them the content."""
        ...

    def rows_of(self, item_tokens: Sequence[str]) -> Tensor:
        """Row of each item, int64 [n]; -1 for the pad."""
        ...

    def states(self, rows: Tensor) -> Tensor:
        """Kept states of rows, [n, n_states, width], of any floating type and on any device."""
        ...


class SideContent(nn.Module):
    """Content vectors from side networks, one a group, over the same cached hidden states.

    Satisfies `ContentEncoder` (`recbole_perpeft.nn.content`).

    Args:
        sources: Hidden states of each tower's backbone, one or two.
        rows_of_item: Row of each item in each source, each [n_items]; -1 for the pad.
        settings: What a side network is.

    Attributes:
        networks: `global`, and after `personalise` one a group, named by its number.
        content_size: Width of a content vector.
        foundation_fingerprint: Identifies what the states come from.

    Raises:
        PerPEFTError: An item lacks states in one of the sources, or the settings do not fit them.
    """

    reads_stored = True

    def __init__(
        self, sources: Sequence[StateSource], rows_of_item: Sequence[Tensor], settings: SideNetworkSettings
    ) -> None:
        super().__init__()
        _check_rows(rows_of_item, len(sources))
        self.sources = tuple(sources)
        self._row_of_item = torch.stack(tuple(rows_of_item))  # (towers, n_items), always on the CPU
        widths, n_states = [source.width for source in sources], [source.n_states for source in sources]
        self.networks = GroupModules(SideNetwork(settings, widths, n_states))
        self.content_size = self.networks.of(None).output_size
        self.foundation_fingerprint = "-".join(source.fingerprint for source in sources)

    def parameters_of(self, group: int | None) -> list[nn.Parameter]:
        """Weights of a group's network; None is the global one."""
        return list(self.networks.of(group).parameters())

    def parameter_groups(self) -> dict[str, str]:
        """Learning-rate group of each parameter by name, as in `SideNetwork.parameter_groups`."""
        return {
            f"networks.{key}.{name}": group
            for key, network in self.networks.items()
            for name, group in cast(SideNetwork, network).parameter_groups().items()
        }

    def forward(self, items: Tensor, group: int | None) -> Tensor:
        """As in `ContentEncoder`; items may be on any device."""
        return self._encode_rows(self._row_of_item[:, items.cpu()], group)

    def encode_tokens(self, item_tokens: Sequence[str], group: int | None) -> Tensor:
        """As in `ContentEncoder`."""
        rows = torch.stack([source.rows_of(item_tokens) for source in self.sources])
        return torch.cat([self._encode_rows(part, group) for part in rows.split(_TOKENS_AT_ONCE, dim=1)])

    def input_digest(self) -> str:
        """As in `ContentEncoder`."""
        return rows_digest("-".join(source.identity for source in self.sources), self._row_of_item)

    def _encode_rows(self, rows: Tensor, group: int | None) -> Tensor:
        """Content vectors of rows, [towers, n] on the CPU."""
        network = self.networks.of(group)
        weight = next(network.parameters())
        real = (rows[0] >= 0).nonzero().flatten()
        content = weight.new_zeros(rows.shape[1], self.content_size)
        if not len(real):
            return content
        towers = zip(self.sources, rows[:, real], strict=True)
        vectors = network([_like(weight, source.states(tower_rows)) for source, tower_rows in towers])
        return content.index_copy(0, real.to(content.device), vectors.to(content.dtype))


def _like(weight: Tensor, states: Tensor) -> Tensor:
    """States on the device of a weight, in its type; they travel in the type they are kept in."""
    if weight.device.type == "cuda" and states.device.type == "cpu":
        states = states.pin_memory()  # the copy need not be waited for
    return states.to(weight.device, non_blocking=True).to(weight.dtype)


def _check_rows(rows_of_item: Sequence[Tensor], n_sources: int) -> None:
    n_items = [len(rows) for rows in rows_of_item]
    if len(n_items) != n_sources or len(set(n_items)) != 1:
        raise PerPEFTError(
            f"towers: {n_sources} caches of hidden states and rows for {n_items} items; give the rows of the same "
            "items in each cache"
        )
    known = torch.stack([rows >= 0 for rows in rows_of_item])  # (towers, n_items)
    if not known.all(dim=0).any():
        raise PerPEFTError(
            "towers: no item has hidden states in all of them; build the caches from one item file, the one of this "
            "data set"
        )
    partly = (known.any(dim=0) & ~known.all(dim=0)).nonzero().flatten().tolist()
    if partly:
        tower = int((~known[:, partly[0]]).nonzero()[0])
        raise PerPEFTError(
            f"towers: {len(partly)} items have hidden states in one tower alone, item number {partly[0]} among them, "
            f"which tower {tower} lacks; build all caches from the same item file"
        )
