"""Collecting what RecBole's metrics need by counting: the rank of a target is the number of items that beat it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from recbole.evaluator import Collector
from recbole.evaluator.collector import DataStruct
from recbole.evaluator.register import metrics_dict
from torch import Tensor
from torch.nn import functional

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.training.list_figures import ListFigures
from recbole_perpeft.training.workers import ALONE, Workers

_NAME = re.compile(r"(?P<metric>[a-z]+)@(?P<cut>\d+)")
_PER_EVALUATION = ("rec.topk", "rec.items", "rec.meanrank", "rec.score", "data.label")
# A piece that fits a processor's cache is read again for next to nothing; an accelerator wants larger ones.
_SCORES_OF_PROCESSOR, _SCORES_OF_ACCELERATOR = 2**18, 2**26
_WIDTH, _MOST_WIDTHS = 256, 128  # items of a piece are a multiple of the first; float32 counts as many
# Products of fewer users are rounded by where an item stands; with more, a piece would leave the cache.
_LEAST_USERS, _MOST_USERS = 16, 1024

Pairs = tuple[Tensor, Tensor]  # rows and items
Count = Callable[[Tensor, Tensor], Tensor]


def target_ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """Rank of one target a row, 1 for the best; ties share the middle of their places.

    Args:
        scores: float [n, n_items]; -inf marks items that are no candidates. NaN counts as worse than everything.
        targets: int64 [n] column of each row's target.

    Returns:
        int64 [n]. A target that is no candidate itself has the last rank.

    Raises:
        PerPEFTError: the score of a target is NaN.
    """
    target_scores = scores.gather(1, targets.unsqueeze(1))
    n_better = (scores > target_scores).sum(dim=1, dtype=torch.int32)
    n_equal = (scores == target_scores).sum(dim=1, dtype=torch.int32)
    check_scores_of_targets(target_scores)
    ranks = (1 + n_better + (n_equal - 1) // 2).long()
    return torch.where(target_scores.squeeze(1).isneginf(), scores.shape[1], ranks)


def check_scores_of_targets(scores: Tensor) -> None:
    """Raises PerPEFTError if one is NaN."""
    n_nan = int(scores.isnan().sum())
    if n_nan:
        raise PerPEFTError(f"the model scores {n_nan} of {len(scores)} targets as NaN; lower learning_rate")


def pairs_of(rows: Tensor, pairs: Pairs | None) -> Pairs | None:
    """Pairs of some rows, ascending, by the place of the row among them."""
    if pairs is None:
        return None
    is_among = torch.isin(pairs[0], rows)
    return torch.searchsorted(rows, pairs[0][is_among]), pairs[1][is_among]


@torch.no_grad()
def ranks_by_products(users: Tensor, catalogue: Tensor, targets: Tensor, masked: Pairs | None) -> Tensor:
    """Rank of one target a user, as `target_ranks` has it for `users @ catalogue.T` without the pad.

    Args:
        users: [B, d], of 32 bits a number or less.
        catalogue: vectors of items, [n_items, d], that of the pad first.
        targets: int64 [B], not the pad.
        masked: row and item of every pair that is no candidate, int64 [n] each; None for none.

    Returns:
        int64 [B], on the device of the vectors.

    Raises:
        PerPEFTError: the score of a target is NaN.
    """
    targets, masked = targets.cpu(), None if masked is None else (masked[0].cpu(), masked[1].cpu())
    found = [targets[:0].to(users.device)]
    for start in range(0, len(users), _MOST_USERS):
        some = slice(start, start + _MOST_USERS)
        rows = torch.arange(len(users))[some]
        out = pairs_of(rows, masked) or (rows[:0], rows[:0])
        found.append(_ranks(users[some], catalogue, targets[some], out))
    return torch.cat(found)


def _ranks(users: Tensor, catalogue: Tensor, targets: Tensor, out: Pairs) -> Tensor:
    """As `ranks_by_products`, of as many users as fit; ids are on the CPU."""
    rows, n_items = torch.arange(len(users)), len(catalogue)
    is_lost = torch.isin(rows * n_items + targets, out[0] * n_items + out[1]).to(users.device)
    # A target does not compete with itself.
    out = (torch.cat([out[0], rows, rows]), torch.cat([out[1], targets, torch.zeros_like(rows)]))
    pieces = _Pieces.of(users, catalogue)
    goals = pieces.scores_of(targets).masked_fill_(is_lost, 0.0)
    check_scores_of_targets(goals)
    surplus = pieces.surplus(goals, out, _by_signs)
    if surplus.isnan().any():
        surplus = pieces.surplus(goals, out, _by_comparisons)
    # Of n scores, b better and e equal ones, this is 1 + b + e // 2, as the surplus is b - (n - b - e).
    ranks = 1 + torch.floor((surplus + n_items) / 2).long()
    return torch.where(is_lost | goals.isneginf(), n_items, ranks)


@dataclass(frozen=True)
class _Pieces:
    """Products of users with as many items at a time, all in the same memory: new memory would take longer than they.

    All have one shape, as how a product is rounded may depend on it, and equal vectors must have equal scores.
    """

    users: Tensor  # [at least _LEAST_USERS, d]
    catalogue: Tensor  # [at least _WIDTH, d]
    n_items: int
    memory: Tensor  # [B, width]

    @classmethod
    def of(cls, users: Tensor, catalogue: Tensor) -> _Pieces:
        at_once = _SCORES_OF_PROCESSOR if users.device.type == "cpu" else _SCORES_OF_ACCELERATOR
        n_items = len(catalogue)
        users, catalogue = _with_rows(users, _LEAST_USERS), _with_rows(catalogue, _WIDTH)
        widths = max(1, min(at_once // (_WIDTH * len(users)), _MOST_WIDTHS, len(catalogue) // _WIDTH))
        return cls(users, catalogue, n_items, users.new_empty(len(users), widths * _WIDTH))

    @property
    def width(self) -> int:
        return self.memory.shape[1]

    def _scores(self, items: Tensor) -> Tensor:
        """Of items [width, d]; the next call overwrites them."""
        return torch.mm(self.users, items.T, out=self.memory)

    def scores_of(self, items: Tensor) -> Tensor:
        """Score of one item a user, [B]."""
        found = []
        for some in torch.arange(len(items)).split(self.width):
            asked = functional.pad(items[some], (0, self.width - len(some))).to(self.users.device)
            found.append(self._scores(self.catalogue[asked]).diagonal(int(-some[0]))[: len(some)].clone())
        return torch.cat(found)

    def surplus(self, goals: Tensor, out: Pairs, count: Count) -> Tensor:
        """How many more of all items are better than each goal than worse, float64 [B]; those that are out are worse.

        Args:
            goals: a score a user, [B].
            out: users and items that do not compete.
            count: the surplus of a piece, which it may overwrite.
        """
        surplus = torch.zeros_like(goals, dtype=torch.float64)
        items, order = out[1].sort()
        firsts = torch.arange(0, self.n_items, self.width)
        borders = [*torch.searchsorted(items, firsts).tolist(), len(items)]
        rows, items = out[0][order].to(goals.device), items.to(goals.device)
        for number, first in enumerate(firsts.tolist()):
            start = min(first, len(self.catalogue) - self.width)  # the last piece begins with items of the one before
            scores = self._scores(self.catalogue[start : start + self.width])
            here = slice(borders[number], borders[number + 1])
            scores[rows[here], items[here] - start] = -torch.inf
            surplus += count(scores[: len(goals), first - start : self.n_items - start], goals.unsqueeze(1))
        return surplus


def _with_rows(vectors: Tensor, n: int) -> Tensor:
    """Vectors [m, d] with zeros behind them, if they are fewer than n; no copy else."""
    return vectors if len(vectors) >= n else functional.pad(vectors, (0, 0, 0, n - len(vectors)))


def _by_signs(scores: Tensor, goals: Tensor) -> Tensor:
    """Better scores less worse ones, [B], in few passes; NaN where a score may be none."""
    kind = torch.promote_types(scores.dtype, torch.float32)
    total = scores.sub_(goals).sum(1, dtype=kind)  # the sign of NaN is 0
    return torch.where(total.isnan(), total, scores.sign_().sum(1, dtype=kind))


def _by_comparisons(scores: Tensor, goals: Tensor) -> Tensor:
    """The same of any scores: one that is no number is worse than everything."""
    return (scores > goals).sum(1) - (~(scores >= goals)).sum(1)


@dataclass(frozen=True)
class TargetRanks:
    """Rank of every target of an evaluation, in the order of the evaluation; internal ids."""

    users: Tensor  # [n]
    items: Tensor  # [n]
    ranks: Tensor  # [n]


class RankCollector(Collector):
    """RecBole's collector without its label matrix of users by items and without its growing tensors.

    The metrics see the same data as with RecBole's collector where the scores of a row differ. Among equal scores
    RecBole takes whatever `torch.topk` returns first, which flatters a model that scores everything alike, as items
    are numbered as they appear. Here a single target of a row has the middle of their places, and of several targets
    each has one of them by a lottery that is the same for all models.

    Args:
        config: RecBole configuration.
        workers: the processes that share an evaluation; each ends up with what all have collected.

    Attributes:
        target_ranks: ranks of the latest finished evaluation; None where users had several targets.
        list_figures: if set, counts the lists of the evaluations that follow; candidates must be all items.
    """

    def __init__(self, config, workers: Workers = ALONE) -> None:
        super().__init__(config)
        self._workers = workers
        self._needs_hits = self.register.need("rec.topk")
        self._needs_items = self.register.need("rec.items")
        # What these two need is collected here, all else by RecBole's own method.
        setattr(self.register, "rec.topk", False)
        setattr(self.register, "rec.items", False)
        self._user_field = config["USER_ID_FIELD"]
        self.target_ranks: TargetRanks | None = None
        self.list_figures: ListFigures | None = None
        self._reset()

    def _reset(self) -> None:
        self._hits: list[Tensor] = []
        self._items: list[Tensor] = []
        self._ranks: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def needs_scores(self) -> bool:
        """Whether something is collected that does not follow from the ranks of targets."""
        others = any(self.register.need(name) for name in ("rec.meanrank", "rec.score", "data.label"))
        return others or self._needs_items or self.list_figures is not None or not self._needs_hits

    def add_ranks(self, interaction, targets: Tensor, ranks: Tensor) -> None:
        """Collect a batch with one target a row.

        Args:
            interaction: rows of the batch.
            targets: internal ids, [n].
            ranks: of the targets, [n].
        """
        # With sampled candidates the interaction has a row a candidate: whose rank it is would have to be guessed.
        if len(interaction) == len(ranks):
            self._ranks.append((interaction[self._user_field].cpu(), targets.cpu(), ranks.cpu()))
        self._hits.append(_hits_of_ranks(ranks, max(self.topk)).cpu())

    def eval_batch_collect(self, scores_tensor, interaction, positive_u, positive_i) -> None:
        """Collect a batch; arguments as in RecBole: scores [n, n_items], row and item of every positive.

        Scores may be None: then the trainer has told `add_ranks` of the batch.
        """
        if scores_tensor is None:
            return
        super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)
        if self._needs_items:
            self._items.append(self._top_items(scores_tensor).cpu())
        if self.list_figures is not None:
            self.list_figures.add(scores_tensor, interaction[self._user_field], positive_u, positive_i)
        if not self._needs_hits:
            return
        positive_u, positive_i = positive_u.to(scores_tensor.device), positive_i.to(scores_tensor.device)
        rows = torch.arange(len(scores_tensor), device=positive_u.device)
        if torch.equal(positive_u, rows):
            self.add_ranks(interaction, positive_i, target_ranks(scores_tensor, positive_i))
        else:
            self._hits.append(self._hits_of_many(scores_tensor, positive_u, positive_i).cpu())

    def get_data_struct(self) -> DataStruct:
        """Everything collected since the last call, by all processes."""
        if self._hits:
            self.data_struct.set("rec.topk", torch.cat(self._hits))
        if self._items:
            self.data_struct.set("rec.items", torch.cat(self._items))
        ranks = self._own_ranks()
        if self._workers.size > 1:
            ranks = self._of_all(ranks)
            if self.list_figures is not None:
                self.list_figures.add_up(self._workers)
        collected = DataStruct()
        collected._data_dict = dict(self.data_struct._data_dict)
        for name in _PER_EVALUATION:
            if name in self.data_struct:
                del self.data_struct[name]
        self.target_ranks = TargetRanks(*ranks) if ranks else None
        self._reset()
        return collected

    def _own_ranks(self) -> list[Tensor]:
        """Columns of `TargetRanks`; none where users had several targets."""
        if not self._ranks or len(self._ranks) != len(self._hits):
            return []
        return [torch.cat(column) for column in zip(*self._ranks, strict=True)]

    def _of_all(self, ranks: list[Tensor]) -> list[Tensor]:
        """Put what all processes have collected, in their order, in the place of what this one has.

        Returns:
            The ranks of all.
        """
        own = {name: self.data_struct.get(name) for name in _PER_EVALUATION if name in self.data_struct}
        parts = [part for part in self._workers.gather((own, ranks)) if part[0]]  # a process may have had no batch
        for name in {name for part, _ in parts for name in part}:
            self.data_struct.set(name, torch.cat([part[name] for part, _ in parts]))
        columns = [of_part for _, of_part in parts]
        return [torch.cat(column) for column in zip(*columns, strict=True)] if all(columns) else []

    def _top_items(self, scores: Tensor) -> Tensor:
        return torch.topk(scores, max(self.topk), dim=-1).indices

    def _hits_of_many(self, scores: Tensor, positive_u: Tensor, positive_i: Tensor) -> Tensor:
        """[n, K + 1] as RecBole's metrics take it: whether places 1..K are positives, and the number of positives."""
        n_rows, n_items = scores.shape
        n_positives = torch.bincount(positive_u, minlength=n_rows)
        order = torch.randperm(n_items, generator=torch.Generator().manual_seed(0)).to(scores.device)
        top_items = order[self._top_items(scores[:, order])]
        rows = torch.arange(n_rows, device=scores.device).unsqueeze(1)
        hits = torch.isin(rows * n_items + top_items, positive_u * n_items + positive_i)
        hits = torch.cat([hits.int(), n_positives.unsqueeze(1).int()], dim=1)
        is_single = n_positives[positive_u] == 1  # as in a batch of such rows alone
        single = positive_u[is_single]
        if len(single):
            ranks = target_ranks(scores[single], positive_i[is_single])
            hits[single] = _hits_of_ranks(ranks, max(self.topk))
        return hits


def mean_of_ranks(config, name: str, ranks: Tensor) -> float:
    """A metric of RecBole of some targets, as an evaluation rounds it; of metrics that a project registers too.

    Args:
        config: RecBole configuration.
        name: Such as `ndcg@20`.
        ranks: int64 [n], 1 for the best.

    Raises:
        PerPEFTError: the metric is not one of ranks alone.
    """
    metric = metrics_dict[name.partition("@")[0]](config)
    if list(metric.metric_need) != ["rec.topk"]:
        raise PerPEFTError(
            f"valid_metric: {name} is no metric of ranks alone; choose Hit, NDCG, MRR, Recall, Precision or MAP"
        )
    collected = DataStruct()
    collected.set("rec.topk", _hits_of_ranks(ranks, max(config["topk"])))
    return float(metric.calculate_metric(collected)[name])


def _hits_of_ranks(ranks: Tensor, n_places: int) -> Tensor:
    """[n, K + 1] as in `_hits_of_many` for rows with one positive."""
    places = torch.arange(1, n_places + 1, device=ranks.device)
    hits = (ranks.unsqueeze(1) == places).int()
    return torch.cat([hits, torch.ones_like(hits[:, :1])], dim=1)


def _hit(ranks: np.ndarray) -> np.ndarray:
    return np.ones_like(ranks, dtype=np.float64)


def _ndcg(ranks: np.ndarray) -> np.ndarray:
    return 1 / np.log2(ranks + 1.0)


def _mrr(ranks: np.ndarray) -> np.ndarray:
    return 1.0 / ranks


# With one target a row; precision is divided by the cut as well.
_OF_RANK: Mapping[str, Callable[[np.ndarray], np.ndarray]] = MappingProxyType(
    {"hit": _hit, "recall": _hit, "precision": _hit, "ndcg": _ndcg, "mrr": _mrr, "map": _mrr}
)


def is_rank_metric(name: str) -> bool:
    """Whether a metric such as `ndcg@20` follows from the rank of the target."""
    found = _NAME.fullmatch(name.lower())
    return found is not None and found["metric"] in _OF_RANK


def metric_of_ranks(name: str, ranks: np.ndarray) -> np.ndarray:
    """A metric of each of several rows with one target each, as RecBole defines it.

    Args:
        name: `hit@k`, `recall@k`, `precision@k`, `ndcg@k`, `mrr@k` or `map@k`.
        ranks: int [n], 1 for the best.

    Returns:
        float64 [n].

    Raises:
        KeyError: the metric does not follow from the rank.
    """
    if not is_rank_metric(name):
        raise KeyError(name)
    metric, cut = name.lower().split("@")
    values = np.where(ranks <= int(cut), _OF_RANK[metric](ranks), 0.0)
    return values / int(cut) if metric == "precision" else values
