"""The best modules of each group, chosen by the group's own valid users."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.nn.adapt.groups import group_state, load_group_state
from recbole_perpeft.training.rank_metrics import is_rank_metric, mean_of_ranks

FALLBACK = -1  # the epoch of modules that are still those of the global stage


@dataclass
class GroupBests:
    """What each group's best epoch has left; groups that have none keep the global modules.

    Everything outside the groups' modules must rest, or the modules of an earlier epoch would meet another model.

    Args:
        bigger: Whether a bigger score is the better one.
        patience: Evaluations without a better score after which a group is finished.
        margin: Standard errors by which a group's users must gain before it leaves the global modules.

    Attributes:
        scores: Best valid score of each group; None for one without valid users.
        epochs: Epoch of each group's best modules, `FALLBACK` where these are the global ones.
        waited: Evaluations of each group since its best, until it is finished.
        global_values: With a margin, the valid metric of each user under the global modules, float32 [n_users].
    """

    bigger: bool
    patience: float
    margin: float = 0.0
    scores: list[float | None] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    waited: list[int] = field(default_factory=list)
    global_values: Tensor = field(default_factory=lambda: torch.empty(0))
    _states: list[dict[str, Tensor]] = field(default_factory=list)

    def start(self, model: nn.Module, scores: list[float | None]) -> None:
        """Take the modules as they are, which are copies of the global ones.

        Args:
            model: With groups.
            scores: Valid score of each group.
        """
        self.scores = list(scores)
        self.epochs = [FALLBACK] * len(scores)
        self.waited = [0] * len(scores)
        self._states = [group_state(model, group) for group in range(len(scores))]

    def update(
        self, model: nn.Module, scores: list[float | None], epoch: int, gains: list[float] | None = None
    ) -> bool:
        """Keep the modules of the groups that are better than before.

        Args:
            model: After an epoch.
            scores: Valid score of each group.
            epoch: Its number.
            gains: Of each group over the global modules, in standard errors, as `gains_of_groups`; None where any
                gain counts.

        Returns:
            Whether any group is better.
        """
        improved = False
        for group, (score, best) in enumerate(zip(scores, self.scores, strict=True)):
            self.waited[group] += not self.is_finished(group)
            if score is None or best is None or (score <= best if self.bigger else score >= best):
                continue
            if gains is not None and self.epochs[group] == FALLBACK and gains[group] < self.margin:
                continue
            improved = True
            self.scores[group], self.epochs[group], self.waited[group] = score, epoch, 0
            self._states[group] = group_state(model, group)
        return improved

    def check_start(self, has_trained: bool) -> None:
        """Whether it is known what groups started from, where a training goes on with other settings.

        Args:
            has_trained: Whether groups have trained already.

        Raises:
            PerPEFTError: It is not.
        """
        if has_trained and not self.scores:
            raise PerPEFTError(
                "shared_in_groups: freeze was not set when groups began to train, so that nobody knows the global "
                "modules that they would fall back to: leave it as it was, or start anew"
            )
        if self.scores and self.margin and not len(self.global_values):
            raise PerPEFTError(
                f"fallback_margin is {self.margin:g}, but it was 0 when groups began to train, and no user's value "
                "was kept: leave it as it was, or start anew"
            )

    def is_finished(self, group: int) -> bool:
        """Whether a group has waited for a better score for too long, or has no users to measure one."""
        return self.scores[group] is None or self.waited[group] > self.patience

    def rest_but(self, group: int) -> None:
        """Let all groups but one be finished."""
        self.scores = [score if number == group else None for number, score in enumerate(self.scores)]

    def take(self, group: int, other: "GroupBests") -> None:
        """What a group keeps elsewhere."""
        self.scores[group], self.epochs[group] = other.scores[group], other.epochs[group]
        self.waited[group], self._states[group] = other.waited[group], other._states[group]

    def finished(self) -> set[int]:
        """Groups that train no more."""
        return {group for group in range(len(self.scores)) if self.is_finished(group)}

    def waited_by_all(self) -> int:
        """Evaluations since a group was better than before; of groups whose users can be measured."""
        waited = (n for n, score in zip(self.waited, self.scores, strict=True) if score is not None)
        return min(waited, default=int(self.patience) + 1)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Put each group's best modules into the model for a while."""
        current = [group_state(model, group) for group in range(len(self._states))]
        self._put(model, self._states)
        try:
            yield
        finally:
            self._put(model, current)

    @staticmethod
    def _put(model: nn.Module, states: list[dict[str, Tensor]]) -> None:
        for group, state in enumerate(states):
            load_group_state(model, group, state)

    def best_epochs(self, first_epoch: int) -> list[int | None]:
        """Each group's best epoch, counted from 1; None where it keeps the global module.

        Args:
            first_epoch: Number of epochs before the first of the groups' own.
        """
        return [None if epoch == FALLBACK else epoch + 1 - first_epoch for epoch in self.epochs]

    def summary(self, first_epoch: int) -> str:
        """A sentence on what groups keep; argument as in `best_epochs`."""
        epochs = dict(enumerate(self.best_epochs(first_epoch)))
        own = [f"{group}: {epoch}" for group, epoch in epochs.items() if epoch is not None]
        fallen = [str(group) for group, epoch in epochs.items() if epoch is None]
        kept = f"best epochs of groups: {', '.join(own)}" if own else "no group beats the global module"
        return kept + (f"; {len(fallen)} keep the global module: {', '.join(fallen)}" if fallen else "")

    def state(self) -> dict[str, Any]:
        """Tensors and plain types to go on from."""
        return {
            "scores": self.scores,
            "epochs": self.epochs,
            "waited": self.waited,
            "states": self._states,
            "global_values": self.global_values,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Undoes `state`."""
        self.scores, self.epochs = list(state["scores"]), list(state["epochs"])
        self.waited, self._states = list(state["waited"]), list(state["states"])
        self.global_values = state.get("global_values", self.global_values)


def check_choice(config, margin: float, valid_data) -> None:
    """Whether groups can choose their best epochs, before hours are spent.

    Args:
        config: RecBole configuration.
        margin: `fallback_margin`.
        valid_data: Valid loader; None, or one without rows, if there is none.

    Raises:
        PerPEFTError: They cannot.
    """
    metric = config["valid_metric"].lower()
    if not valid_data:
        raise PerPEFTError("shared_in_groups: freeze chooses by valid items, and there are none; change eval_args")
    if config["eval_step"] < 1:
        raise PerPEFTError(
            "shared_in_groups: freeze chooses each group's epoch by evaluations, and eval_step is 0: set it to 1"
        )
    if config["eval_sample"]:
        raise PerPEFTError(
            "shared_in_groups: freeze chooses an epoch for each group by all of its valid users; set eval_sample to 0"
        )
    mean_of_ranks(config, metric, torch.ones(1, dtype=torch.long))
    if margin and not is_rank_metric(metric):
        raise PerPEFTError(
            f"fallback_margin compares users, and {metric} has no value for each: set it to 0, or valid_metric to "
            "Hit, NDCG, MRR, Recall, Precision or MAP"
        )


def scores_of_groups(
    groups: np.ndarray, n_groups: int, ranks: Tensor, metric: Callable[[Tensor], float]
) -> list[float | None]:
    """A metric of each group's own users.

    Args:
        groups: Group of the user of each rank, [n].
        n_groups: C.
        ranks: Rank of each target, [n].
        metric: Of some ranks.

    Returns:
        C values; None for a group without a target.
    """
    members = (np.flatnonzero(groups == group) for group in range(n_groups))
    return [metric(ranks[own]) if len(own) else None for own in members]


def gains_of_groups(before: np.ndarray, after: np.ndarray, groups: np.ndarray, n_groups: int) -> list[float]:
    """What each group's users gain on average, in standard errors of that mean: a paired comparison.

    Args:
        before: A metric of each user, higher is better, [n]; NaN where there is none.
        after: The same later, [n].
        groups: Group of each user, [n].
        n_groups: C.

    Returns:
        C values; 0 for a group of fewer than two users with both, infinite where all gain the same.
    """
    difference, found = np.asarray(after, dtype=np.float64) - before, []
    for group in range(n_groups):
        own = difference[groups == group]
        own = own[~np.isnan(own)]
        mean = own.mean() if len(own) > 1 else 0.0
        error = own.std(ddof=1) / np.sqrt(len(own)) if mean else 1.0
        found.append(float(mean / error) if error else float(np.copysign(np.inf, mean)))
    return found
