"""What is typical of each group: what it buys more often than the others, and how well it is served."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from sklearn.feature_extraction.text import CountVectorizer
from torch import Tensor

from recbole_perpeft.data.history import HistoryIndex
from recbole_perpeft.models.perpeft.model import PerPEFT
from recbole_perpeft.training.rank_metrics import metric_of_ranks
from recbole_perpeft.training.ranks import target_ranks

_PRIOR = 500.0  # weight of the whole shop in the smoothed rates of a group, in interactions
_WORD = r"(?u)\b[^\W\d_]{2,}\b"


def counts_by_group(histories: HistoryIndex, user_group: np.ndarray, n_groups: int, n_items: int) -> np.ndarray:
    """Interactions of each group's users with each item, int64 [C, n_items]; users of group -1 are left out."""
    users, items = histories.pairs()
    groups = user_group[users]
    kept = groups >= 0
    flat = np.bincount(groups[kept] * n_items + items[kept], minlength=n_groups * n_items)
    return flat.reshape(n_groups, n_items)


@dataclass(frozen=True)
class Typical:
    """How much more often groups take something than the others do.

    Attributes:
        lift: float64 [C, n], smoothed rate in the group over the rate in the whole.
        evidence: float64 [C, n], z-scores of the log-odds ratio between the group and the others.
    """

    lift: np.ndarray
    evidence: np.ndarray

    @classmethod
    def of(cls, counts: np.ndarray) -> Typical:
        """From counts [C, n], with the whole as prior.

        Monroe, Colaresi and Quinn, *Fightin' Words*, Political Analysis 16 (2008), equations 16, 19, 20 and 22: rare
        things need a larger ratio than frequent ones to be typical.
        """
        counts = counts.astype(np.float64)
        whole, sizes = counts.sum(0), counts.sum(1, keepdims=True)
        total = max(whole.sum(), 1.0)
        prior = _PRIOR * whole / total
        own, others = counts + prior, whole - counts + prior
        with np.errstate(divide="ignore", invalid="ignore"):
            odds = np.log(own / (sizes + _PRIOR - own)) - np.log(others / (total - sizes + _PRIOR - others))
            evidence = odds / np.sqrt(1 / own + 1 / others)
            lift = own / (sizes + _PRIOR) / (whole / total)
        return cls(np.nan_to_num(lift, nan=1.0), np.nan_to_num(evidence, posinf=0.0, neginf=0.0))

    def most(self, group: int, n: int) -> list[tuple[int, float]]:
        """Places and lifts of what is most typical of a group, at most n; what it takes less often is left out."""
        order = np.argsort(-self.evidence[group], kind="stable")[:n]
        return [(int(place), float(self.lift[group, place])) for place in order if self.evidence[group, place] > 0]


def words_of(titles: Sequence[str]) -> tuple[scipy.sparse.csr_matrix, list[str]]:
    """Which words are in which title, 0/1 [n_titles, W], and the words; none where titles have no words."""
    vectorizer = CountVectorizer(binary=True, token_pattern=_WORD)
    try:
        found = vectorizer.fit_transform(titles)
    except ValueError:  # scikit-learn refuses an empty vocabulary
        return scipy.sparse.csr_matrix((len(titles), 0), dtype=np.int64), []
    return found, list(vectorizer.get_feature_names_out())


@torch.no_grad()
def ranks_under(model: PerPEFT, loader: Iterable, as_everybody: bool) -> tuple[np.ndarray, np.ndarray]:
    """Users of an evaluation with a full ranking, and the ranks of their targets.

    Args:
        model: A model with groups.
        loader: RecBole's loader of the evaluation, or some of its batches.
        as_everybody: With the global module in place of each user's group's.

    Returns:
        Internal user ids and ranks, each int64 [n].
    """
    users: list[Tensor] = []
    ranks: list[Tensor] = []
    everybody = model.catalogue(None) if as_everybody else None
    for interaction, history, row, items in loader:
        if everybody is None:
            scores = model.full_sort_predict(interaction)
        else:
            vectors = model.user_vectors(interaction[model.ITEM_SEQ], interaction[model.ITEM_SEQ_LEN], everybody)
            scores = vectors @ everybody.T
        scores[:, 0] = -torch.inf
        if history is not None:
            scores[history] = -torch.inf
        ranks.append(target_ranks(scores[row], items))
        users.append(interaction[model.USER_ID][row])
    return torch.cat(users).numpy(), torch.cat(ranks).numpy()


@dataclass(frozen=True)
class Service:
    """How well a group is served.

    Attributes:
        own, everybody: Mean of the metric over the group's users as the model scores them (by the group's module,
            or by all with `group_mixing`), and with the global module.
        interval: Half the width of the 95 % interval of the mean difference; nan for fewer than two users.
        n_users: Number of users with a target.
    """

    own: float
    everybody: float
    interval: float
    n_users: int


def services(
    metric: str, own: np.ndarray, everybody: np.ndarray, group_of_row: np.ndarray, n_groups: int
) -> list[Service]:
    """One a group, from ranks [n] of the same rows with either module."""
    own_value, everybody_value = metric_of_ranks(metric, own), metric_of_ranks(metric, everybody)
    found = []
    for group in range(n_groups):
        rows = group_of_row == group
        difference = own_value[rows] - everybody_value[rows]
        n = int(rows.sum())
        interval = 1.96 * difference.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
        means = [float(values[rows].mean()) if n else float("nan") for values in (own_value, everybody_value)]
        found.append(Service(means[0], means[1], float(interval), n))
    return found
