"""Negatives from the items of a user's interest group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.history import HistoryIndex, ranges

__all__ = ["DISTRIBUTIONS", "Candidates", "Draws", "GroupAwareSampler", "batch_seed"]

DISTRIBUTIONS = ("uniform", "popularity")

# Draws are `random integer below 2**62 modulo free weight`: keys of (user, weight) must stay below the same bound.
KEY_BITS = 62
# Popularity weights with an exponent other than 1 become integers whose sum has this many bits at most.
WEIGHT_BITS = 40


@dataclass(frozen=True)
class Draws:
    """Items that are drawn for a batch of training rows.

    Args:
        negatives: For each target, items that its user does not have.
        candidates: For all targets together, `GroupAwareSampler.candidates`.
        catalogue: Whether all items are candidates; then none is drawn.
    """

    negatives: int = 0
    candidates: int = 0
    catalogue: bool = False


@dataclass(frozen=True)
class Candidates:
    """Items that all targets of a batch are compared with.

    Args:
        items: Their ids, ascending, int64 [n].
        log_weight: How many items each stands for, as a logarithm: times drawn over times expected, float32 [n].
        owned: Which of them the user of each row has, bool [B, n].
    """

    items: torch.Tensor
    log_weight: torch.Tensor
    owned: torch.Tensor

    def as_fields(self) -> dict[str, torch.Tensor]:
        """Columns of a batch, each [B, n]; what all rows have in common takes no memory."""
        shared = {"candidate_items": self.items, "candidate_log_weight": self.log_weight}
        columns = {name: tensor.expand(len(self.owned), -1) for name, tensor in shared.items()}
        return columns | {"candidate_owned": self.owned}

    @classmethod
    def from_fields(cls, batch: Mapping[str, torch.Tensor]) -> "Candidates":
        """Undoes `as_fields`."""
        return cls(batch["candidate_items"][0], batch["candidate_log_weight"][0], batch["candidate_owned"])


def batch_seed(seed: int, epoch: int, number: int) -> int:
    """Seed of what is drawn for a batch of an epoch, by whomever."""
    return int(np.random.SeedSequence([seed, epoch, number]).generate_state(1)[0])


class GroupAwareSampler:
    """Draws negatives for users from the item pool of their group, never an item of their own train history.

    The pool of a group holds the items of the train histories of its users (perpeft.md section 4, stage 3). Before
    `set_groups`, and for a user who owns the whole pool of his group, the pool is the catalogue (items
    1 .. n_items - 1).

    A draw is exact and needs no rejection: the pool of a user lies side by side on a line of integer weights, his own
    items are cut out, a point is drawn on what remains and moved right by the weight cut out before it. One binary
    search finds that weight, a second one the item. All memory is linear in interactions and items.

    Args:
        history: train items of every user.
        n_items: number of item ids, the pad included.
        distribution: "uniform", or "popularity": proportional to `count ** alpha`, where the count of an item is that
            of its train interactions, within the group for draws from a group's pool. An item of the catalogue without
            a train interaction counts as one with a single interaction: it must be pushed down in the ranking too.
        alpha: exponent of the popularity.
        seed: of the random generator.
        user_tokens: names of users in error messages, [n_users]; without it users are named by their ids.
        item_counts: interactions of each item for the popularity in the catalogue, int64 [n_items]; by default those
            of `history`.

    Raises:
        PerPEFTError: if the distribution is unknown, `alpha` negative, or a user owns the whole catalogue.
    """

    def __init__(
        self,
        history: HistoryIndex,
        n_items: int,
        distribution: str = "uniform",
        alpha: float = 1.0,
        seed: int = 0,
        user_tokens: Sequence[str] | None = None,
        item_counts: np.ndarray | None = None,
    ) -> None:
        if distribution not in DISTRIBUTIONS:
            raise PerPEFTError(f"negative_distribution is {distribution!r}: choose one of {', '.join(DISTRIBUTIONS)}.")
        if alpha < 0:
            raise PerPEFTError(f"negative_alpha is {alpha}: it must be 0 or more.")
        self._alpha = alpha if distribution == "popularity" else 0.0
        self._owned = _Owned.of(history, n_items)
        _check_owners(self._owned, user_tokens)
        self._catalogue = self._catalogue_pools(item_counts)
        self._groups = self._catalogue
        self._group_negative_ratio = 1.0
        self._generator = torch.Generator().manual_seed(seed)

    def set_groups(self, user_group: np.ndarray | torch.Tensor | None, group_negative_ratio: float = 1.0) -> None:
        """Sets the groups whose pools negatives come from.

        Args:
            user_group: int64 [n_users] group of every user, the pad included (its value is not used); None: everybody
                draws from the catalogue.
            group_negative_ratio: share of the draws that come from the group's pool, in [0, 1]; the others come
                from the catalogue.

        Raises:
            PerPEFTError: if a user with train items has no group, or the sizes or the ratio are wrong.
        """
        if not 0.0 <= group_negative_ratio <= 1.0:
            raise PerPEFTError(f"group_negative_ratio is {group_negative_ratio}: it must lie in [0, 1].")
        self._groups = self._catalogue if user_group is None else self._group_pools(np.asarray(user_group))
        self._group_negative_ratio = group_negative_ratio

    def sample(self, users: torch.Tensor, n_positions: int) -> torch.Tensor:
        """Negatives of a batch; users of several groups may be mixed.

        Args:
            users: LongTensor [B] user ids on the CPU.
            n_positions: L, draws a user.

        Returns:
            LongTensor [B, L] of item ids, drawn independently.
        """
        flat = users.repeat_interleave(n_positions)  # (B * L)
        from_group = self._groups.free_weight[flat] > 0
        if self._group_negative_ratio < 1.0:
            from_group &= torch.rand(len(flat), generator=self._generator) < self._group_negative_ratio
        if from_group.all():
            return self._draw(self._groups, flat).view(-1, n_positions)
        items = torch.empty_like(flat)
        items[from_group] = self._draw(self._groups, flat[from_group])
        items[~from_group] = self._draw(self._catalogue, flat[~from_group])
        return items.view(-1, n_positions)

    def sample_at(self, users: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Negatives [B, L] of users [B] from the catalogue; equal points (LongTensor [B, L]) are equal items."""
        return self._catalogue.items_at(users.repeat_interleave(points.shape[1]), points.flatten()).view(points.shape)

    def candidates(self, users: torch.Tensor, n: int) -> Candidates:
        """Items for all targets of a batch together, from the pool of its group and the catalogue.

        `group_negative_ratio` of them come from the pool. In each of both, the line of weights is cut into as many
        equal parts as items are drawn, and a point is drawn in each part: an item is expected exactly as often as in
        independent draws, but with less variance, and as many draws as items take each of equal weights once. A sum
        over items is estimated without bias by that over the candidates with their weights.

        Args:
            users: LongTensor [B] user ids on the CPU, all of one group.
            n: how many are drawn; no more than there are, and of items that are drawn twice only one is returned.
        """
        pool = int(self._groups.user_pool[users[0]])
        n_group = n if self._groups is self._catalogue else round(n * self._group_negative_ratio)
        sources = [(self._groups, pool, n_group), (self._catalogue, 0, n - n_group)]
        sources = [(pools, one, min(size, pools.size(one))) for pools, one, size in sources if size]
        drawn = [pools.spread(one, size, self._generator) for pools, one, size in sources]
        items, counts = torch.cat(drawn).unique(return_counts=True)
        expected = sum(size * pools.probability(one, items) for pools, one, size in sources)
        return Candidates(items, (counts / expected).log().float(), self._owned_among(users, items))

    def _owned_among(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Whether users [B] have items [n], bool [B, n]."""
        place = torch.full((self._owned.n_items,), -1)
        place[items] = torch.arange(len(items))
        starts, ends = (self._owned.indptr[users.numpy() + shift] for shift in (0, 1))
        column = place[torch.from_numpy(self._owned.items[ranges(starts, ends - starts)]).long()]
        row = torch.from_numpy(np.repeat(np.arange(len(users)), ends - starts))
        owned = torch.zeros(len(users), len(items), dtype=torch.bool)
        owned[row[column >= 0], column[column >= 0]] = True
        return owned

    def set_seed(self, seed: int) -> None:
        """Starts the random generator anew."""
        self._generator.manual_seed(seed)

    def get_state(self) -> torch.Tensor:
        """State of the random generator, a ByteTensor."""
        return self._generator.get_state()

    def set_state(self, state: torch.Tensor) -> None:
        """Continues from a state that `get_state` gave."""
        self._generator.set_state(state)

    def _draw(self, pools: "_Pools", users: torch.Tensor) -> torch.Tensor:
        points = torch.randint(0, 2**KEY_BITS, users.shape, generator=self._generator)
        return pools.items_at(users, points)

    def _catalogue_pools(self, counts: np.ndarray | None) -> "_Pools":
        owned = self._owned
        if counts is None:
            counts = np.ones(owned.n_items)  # which draws of equal weights do without
            if self._alpha:
                counts = np.bincount(owned.items, weights=owned.counts, minlength=owned.n_items)
        return self._pools(
            items=np.arange(1, owned.n_items),
            counts=np.maximum(counts[1:], 1),
            indptr=np.array([0, owned.n_items - 1]),
            user_pool=np.zeros(owned.n_users, dtype=np.int64),
            slots=owned.items - 1,
        )

    def _group_pools(self, user_group: np.ndarray) -> "_Pools":
        owned = self._owned
        if user_group.shape != (owned.n_users,):
            raise PerPEFTError(f"user_group has shape {user_group.shape}: expected ({owned.n_users},).")
        users = np.repeat(np.arange(owned.n_users), np.diff(owned.indptr))
        groups_of_pairs = user_group[users]
        if len(groups_of_pairs) and groups_of_pairs.min() < 0:
            lost = users[groups_of_pairs.argmin()]
            raise PerPEFTError(f"user_group of user id {lost} is {user_group[lost]}: train users need a group >= 0.")
        keys, slots = np.unique(groups_of_pairs * owned.n_items + owned.items, return_inverse=True)
        n_groups = int(user_group.max(initial=0)) + 1
        return self._pools(
            items=keys % owned.n_items,
            counts=np.bincount(slots, weights=owned.counts, minlength=len(keys)),
            indptr=np.searchsorted(keys, np.arange(n_groups + 1) * owned.n_items),
            user_pool=np.maximum(user_group, 0),
            slots=slots,
        )

    def _pools(self, items, counts, indptr, user_pool, slots) -> "_Pools":
        """Pools from their items; `slots` [n_pairs] is the position in `items` of every owned item."""
        owned = self._owned
        weights = self._weights(counts)
        line = np.concatenate([[0], np.cumsum(weights)])  # weight before each slot of all pools
        pool_start = line[indptr[:-1]][user_pool]  # (n_users)
        cut = np.zeros(len(slots) + 1, dtype=np.int64)  # weight of the owned items before each pair
        np.cumsum(weights[slots], out=cut[1:])
        cut_before_user = cut[owned.indptr[:-1]]
        stride = int((line[indptr[1:]] - line[indptr[:-1]]).max(initial=0)) + 1
        # Where the owned item begins on the line of its user once his earlier items are cut out; pairs are many, so
        # that what their users have in common is added at once, in place.
        border_keys = line[slots]
        border_keys -= cut[:-1]
        of_users = np.arange(owned.n_users) * stride - pool_start + cut_before_user
        border_keys += np.repeat(of_users, np.diff(owned.indptr))
        free_weight = (line[indptr[1:]] - line[indptr[:-1]])[user_pool] - np.diff(cut[owned.indptr])
        return _Pools(
            items=torch.from_numpy(items),
            line=torch.from_numpy(line[1:]) if self._alpha else None,
            stride=stride,
            border_keys=torch.from_numpy(border_keys),
            cut=torch.from_numpy(cut),
            # A point moved by `cut` of all users before must begin at the pool of its user instead.
            shift=torch.from_numpy(pool_start - cut_before_user),
            free_weight=torch.from_numpy(free_weight),
            indptr=indptr,
            user_pool=user_pool,
        )

    def _weights(self, counts: np.ndarray) -> np.ndarray:
        """Integer weights int64 [n_slots], so that a border is never missed by rounding."""
        if self._alpha == 0.0:
            return np.ones(len(counts), dtype=np.int64)
        weights = counts.astype(np.float64)
        if self._alpha != 1.0:
            bits = min(WEIGHT_BITS, KEY_BITS - 1 - int(self._owned.n_users).bit_length())
            weights = (weights / weights.max(initial=1)) ** self._alpha  # counts to a large power are beyond numbers
            weights *= 2.0**bits / weights.sum()
        return np.maximum(np.rint(weights), 1).astype(np.int64)


@dataclass(frozen=True)
class _Owned:
    """Distinct (user, item) pairs of the train part, sorted by user and item.

    Attributes:
        items: int32 [n_pairs].
        counts: interactions of each pair, int64 [n_pairs].
        indptr: int64 [n_users + 1], borders of users.
        n_items: number of item ids, the pad included.
    """

    items: np.ndarray
    counts: np.ndarray
    indptr: np.ndarray
    n_items: int

    @property
    def n_users(self) -> int:
        return len(self.indptr) - 1

    @classmethod
    def of(cls, history: HistoryIndex, n_items: int) -> "_Owned":
        # Sorted in place: `np.unique` holds five arrays of 8 bytes.
        keys = np.repeat(np.arange(history.n_users) * n_items, history.lengths)
        keys += history.items
        keys.sort()
        is_first = np.ones(len(keys), dtype=bool)
        np.not_equal(keys[1:], keys[:-1], out=is_first[1:])
        counts = np.diff(np.flatnonzero(is_first), append=len(keys))
        keys = keys[is_first]
        indptr = np.searchsorted(keys, np.arange(history.n_users + 1) * n_items)
        keys %= n_items
        return cls(keys.astype(np.int32), counts, indptr, n_items)


@dataclass(frozen=True)
class _Pools:
    """Pools of items on a line of weights, with every user's own items cut out.

    Attributes:
        items: LongTensor [n_slots], the items of all pools, sorted within a pool.
        line: LongTensor [n_slots], weight up to and with each slot; None when all weights are 1.
        stride: an upper bound of the weight of any pool.
        border_keys: LongTensor [n_pairs], `user * stride + border`, ascending.
        cut: LongTensor [n_pairs + 1], weight of the owned items before each pair.
        shift: LongTensor [n_users], start of the user's pool minus the weight cut before the user.
        free_weight: LongTensor [n_users], weight of the user's pool without his own items.
        indptr: int64 [n_pools + 1], borders of the pools in `items`.
        user_pool: int64 [n_users], pool of each user.
    """

    items: torch.Tensor
    line: torch.Tensor | None
    stride: int
    border_keys: torch.Tensor
    cut: torch.Tensor
    shift: torch.Tensor
    free_weight: torch.Tensor
    indptr: np.ndarray
    user_pool: np.ndarray

    def size(self, pool: int) -> int:
        """Number of items of a pool."""
        return int(self.indptr[pool + 1] - self.indptr[pool])

    def spread(self, pool: int, n: int, generator: torch.Generator) -> torch.Tensor:
        """Items at a point in each of `n` equal parts of a pool's line, [n]."""
        first, last = self._before(torch.from_numpy(self.indptr[pool : pool + 2])).tolist()
        points = (torch.arange(n) + torch.rand(n, dtype=torch.float64, generator=generator)) * ((last - first) / n)
        places = first + points.long().clamp(max=last - first - 1)
        return self.items[places if self.line is None else torch.searchsorted(self.line, places, right=True)]

    def probability(self, pool: int, items: torch.Tensor) -> torch.Tensor:
        """Weight of items over that of a pool, float64 [n]; 0 for items outside of it."""
        start, end = self.indptr[pool], self.indptr[pool + 1]
        inside = self.items[start:end]
        slots = torch.searchsorted(inside, items).clamp(max=len(inside) - 1)
        first, last = self._before(torch.tensor([start, end])).tolist()
        weight = self._before(start + slots + 1) - self._before(start + slots)
        return (weight.double() / (last - first)).where(inside[slots] == items, 0.0)

    def _before(self, slots: torch.Tensor) -> torch.Tensor:
        """Weight before slots."""
        return slots if self.line is None else self.line[(slots - 1).clamp(min=0)].where(slots > 0, 0)

    def items_at(self, users: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Items at points [n], taken modulo the weight of what remains of the users' [n] pools."""
        points = points % self.free_weight[users]
        n_cut = torch.searchsorted(self.border_keys, users * self.stride + points, right=True)
        places = points + self.cut[n_cut] + self.shift[users]
        slots = places if self.line is None else torch.searchsorted(self.line, places, right=True)
        return self.items[slots]


def check_owners(history: HistoryIndex, n_items: int, user_tokens: Sequence[str] | None = None) -> None:
    """Refuse users for whom no negative is left.

    Args:
        history: items of every user.
        n_items: number of item ids, the pad included.
        user_tokens: names of users, [n_users].

    Raises:
        PerPEFTError: a user owns the whole catalogue.
    """
    _check_owners(_Owned.of(history, n_items), user_tokens)


def _check_owners(owned: _Owned, user_tokens: Sequence[str] | None) -> None:
    owners = np.flatnonzero(np.diff(owned.indptr) >= owned.n_items - 1)
    if len(owners):
        names = ", ".join(str(user if user_tokens is None else user_tokens[user]) for user in owners[:10])
        raise PerPEFTError(
            f"{len(owners)} user(s) own the whole catalogue of {owned.n_items - 1} items, no negative is left for: "
            f"{names}{', ...' if len(owners) > 10 else ''}. Leave them out with "
            f'--user_inter_num_interval="[2,{owned.n_items - 1})".'
        )
