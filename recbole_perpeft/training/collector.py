"""Collecting what RecBole's metrics need, of ranks and of scores."""

from __future__ import annotations

import torch
from recbole.evaluator import Collector
from recbole.evaluator.collector import DataStruct
from torch import Tensor

from recbole_perpeft.training.list_figures import ListFigures
from recbole_perpeft.training.rank_metrics import TargetRanks, hits_of_ranks
from recbole_perpeft.training.ranks import target_ranks
from recbole_perpeft.training.workers import ALONE, Workers

_PER_EVALUATION = ("rec.topk", "rec.items", "rec.meanrank", "rec.score", "data.label")


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
        self._hits.append(hits_of_ranks(ranks, max(self.topk)).cpu())

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
            hits[single] = hits_of_ranks(ranks, max(self.topk))
        return hits
