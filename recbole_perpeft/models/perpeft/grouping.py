"""User groups: k-means on user vectors, random and given groups, and regrouping by likelihood."""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.nn import functional

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.nn.users.sasrec import left_pad

_LOGITS_AT_ONCE = 2**25  # 128 MB of float32
_DRAWN_LOGITS_AT_ONCE = 2**20  # 4 MB
_USERS_AT_ONCE = 4096


def check_group_sizes(n_users: int, n_groups: int, min_group_size: int) -> None:
    """Raises PerPEFTError if so many groups of that size cannot be formed."""
    if n_groups > n_users:
        raise PerPEFTError(f"n_groups is {n_groups}, but there are only {n_users} users; lower n_groups")
    if n_groups * min_group_size > n_users:
        raise PerPEFTError(
            f"{n_groups} groups of at least {min_group_size} users need {n_groups * min_group_size} users, there are "
            f"{n_users}; lower n_groups or min_group_size"
        )


def kmeans_groups(user_vectors: np.ndarray, n_groups: int, min_group_size: int, seed: int) -> np.ndarray:
    """Groups users by k-means (PerPEFT section 3, stage 2; at most 100 iterations).

    A group smaller than `min_group_size` is dissolved, the smallest first: its users go to the nearest remaining
    centroid, so fewer than `n_groups` groups may be left.

    Args:
        user_vectors: [n, d].
        n_groups: C.
        min_group_size: Least number of users of a group.
        seed: Of the starting centroids.

    Returns:
        Group of each user, [n], numbered from 0 without gaps.

    Raises:
        PerPEFTError: If there are too few users.
    """
    check_group_sizes(len(user_vectors), n_groups, min_group_size)
    with warnings.catch_warnings():
        # Fewer distinct users than groups leave clusters empty, which is no different from tiny ones.
        warnings.simplefilter("ignore", ConvergenceWarning)
        kmeans = KMeans(n_groups, max_iter=100, n_init=10, random_state=seed).fit(user_vectors)
    distance = kmeans.transform(user_vectors)  # (n, C)
    groups = kmeans.labels_.astype(np.int64)
    sizes = np.bincount(groups, minlength=n_groups)
    alive = sizes > 0
    while sizes[alive].min() < min_group_size:
        smallest = np.flatnonzero(alive)[sizes[alive].argmin()]
        alive[smallest] = False
        distance[:, smallest] = np.inf
        leaving = groups == smallest
        groups[leaving] = distance[leaving].argmin(1)
        sizes = np.bincount(groups, minlength=n_groups)
    return np.cumsum(alive)[groups] - 1


def random_groups(n_users: int, n_groups: int, min_group_size: int, seed: int) -> np.ndarray:
    """Groups of equal size drawn at random, [n_users]; the control that shows what grouping adds."""
    check_group_sizes(n_users, n_groups, min_group_size)
    return np.random.default_rng(seed).permutation(np.arange(n_users) % n_groups)


def given_groups(dataset, field: str, users: np.ndarray) -> np.ndarray:
    """Groups named by a column of the `.user` file.

    Args:
        dataset: RecBole data set with the column loaded.
        field: The column, of type token.
        users: Internal ids, [n].

    Returns:
        [n], numbered from 0 without gaps.

    Raises:
        PerPEFTError: If the column is not loaded or a user has no group.
    """
    if dataset.user_feat is None or field not in dataset.user_feat:
        raise PerPEFTError(
            f"group_field '{field}' is not loaded; add it with load_col: {{user: [{dataset.uid_field}, {field}]}}"
        )
    value_of_user = np.zeros(dataset.user_num, dtype=np.int64)
    value_of_user[np.asarray(dataset.user_feat[dataset.uid_field])] = np.asarray(dataset.user_feat[field])
    values = value_of_user[users]
    if (values == 0).any():
        token = dataset.id2token(dataset.uid_field, int(users[values == 0][0]))
        raise PerPEFTError(f"user '{token}' has no {field}; every user of the .inter file needs one")
    return np.unique(values, return_inverse=True)[1].reshape(-1)


def mean_vectors(user_vectors: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """Mean user vector of every group, [C, d].

    Args:
        user_vectors: [n, d].
        groups: [n].
        n_groups: C; every group has a user.
    """
    total = torch.zeros(n_groups, user_vectors.shape[1], dtype=user_vectors.dtype, device=user_vectors.device)
    total.index_add_(0, groups, user_vectors)
    return total / torch.bincount(groups, minlength=n_groups).unsqueeze(1)


@torch.no_grad()
def global_user_vectors(model, users: np.ndarray, history, group: int | None = None) -> Tensor:
    """Vectors of users under the global module, or under that of a group.

    Args:
        model: A `ContentRecommender` in evaluation mode.
        users: Internal ids, [n].
        history: `HistoryIndex` of the items to read.
        group: Whose module; None for the global one.

    Returns:
        [n, d], on the CPU.
    """
    catalogue = model.catalogue(group)
    result = []
    for start in range(0, len(users), _USERS_AT_ONCE):
        item_seq, length = history.newest(users[start : start + _USERS_AT_ONCE], model.max_seq_length)
        item_seq, length = (torch.from_numpy(array).to(catalogue.device) for array in (item_seq, length))
        result.append(model.user_vectors(item_seq, length, catalogue).float().cpu())
    return torch.cat(result)


def likelihood_candidates(n_items: int, n: int, seed: Sequence[int]) -> Tensor | None:
    """Items that stand for the catalogue in `sequence_log_likelihood`, ascending; None for all of them.

    Args:
        n_items: Number of items, the pad included.
        n: How many to draw; 0 for all.
        seed: Of the draw.
    """
    if not 0 < n < n_items - 1:
        return None
    drawn = np.random.default_rng(seed).choice(n_items - 1, n, replace=False, shuffle=False)
    return torch.from_numpy(np.sort(drawn) + 1)


@torch.no_grad()
def sequence_log_likelihood(
    model, rows, group: int, batch_size: int = 256, candidates: Tensor | None = None
) -> Tensor:
    r"""Log-likelihood of each training row under a group's modules; a user's is the sum over his rows.

    Sum over the slots of log softmax(<h_t, e_g(i)> over the whole catalogue)[next item]; targets of the row only.

    Of drawn candidates, :math:`\sum_i e^{s_i}` over the n items is taken to be :math:`e^{s_t} + \frac{n - 1}{m} \sum_c
    e^{s_c}` over the m candidates that are not the target t. The sum is right on average, its logarithm too small by
    half its relative variance, which falls as 1 / m: log-likelihoods are a little too large, and with the same
    candidates for all groups nearly as much in each.

    Args:
        model: A `ContentRecommender` in evaluation mode.
        rows: Interaction of training rows (`item_id_list`, `item_length`, `pos_item_id_list`).
        group: Whose modules to use.
        batch_size: Users at once, fewer if the catalogue is large.
        candidates: Items drawn uniformly without replacement that stand for the catalogue, ascending, [m]; None for
            all items.

    Returns:
        [number of rows], on the CPU.
    """
    catalogue = model.catalogue(group)
    candidates = None if candidates is None else candidates.to(catalogue.device)
    row_size = model.max_seq_length * (len(catalogue) if candidates is None else len(candidates))
    batch_size = max(1, min(batch_size, _LOGITS_AT_ONCE // row_size))
    result = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        length = part[model.ITEM_SEQ_LEN]
        item_seq, target = (
            left_pad(part[field].long(), length).to(catalogue.device) for field in (model.ITEM_SEQ, model.POS_ITEM_SEQ)
        )
        hidden = model.user_encoder(functional.embedding(item_seq, catalogue), item_seq)  # (B, L, d)
        if candidates is None:
            logits = hidden @ catalogue.T  # (B, L, n_items)
            logits[..., 0] = -torch.inf  # the pad is no candidate
            per_slot = logits.gather(-1, target.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
            per_slot = per_slot.masked_fill(target == 0, 0.0)
        else:
            is_target = target != 0
            found = _log_softmax_by_drawn(hidden[is_target], target[is_target], catalogue, candidates)
            per_slot = hidden.new_zeros(target.shape).masked_scatter_(is_target, found)
        result.append(per_slot.sum(1).cpu())
    return torch.cat(result)


def _log_softmax_by_drawn(hidden: Tensor, target: Tensor, catalogue: Tensor, drawn: Tensor) -> Tensor:
    """Estimated log softmax of targets [n] for hidden [n, d], a catalogue [n_items, d] and drawn items [m]."""
    place = torch.searchsorted(drawn, target).clamp(max=len(drawn) - 1)
    is_drawn = drawn[place] == target
    n_others = (len(drawn) - is_drawn.long()).clamp(min=1)
    log_weight = torch.log((len(catalogue) - 2) / n_others)  # neither the pad nor the target is among the others
    of_target = (hidden * functional.embedding(target, catalogue)).sum(-1)
    candidates = catalogue[drawn].T.contiguous()
    # The same memory for all pieces, small enough for a processor's cache: most of the time would go to new memory.
    n_at_once = max(1, _DRAWN_LOGITS_AT_ONCE // len(drawn))
    logits = hidden.new_empty(min(n_at_once, len(hidden)), len(drawn))
    result = torch.empty_like(of_target)
    for start in range(0, len(hidden), n_at_once):
        part = slice(start, start + n_at_once)
        scores = torch.mm(hidden[part], candidates, out=logits[: len(hidden[part])])
        at, hit = place[part].unsqueeze(-1), is_drawn[part].unsqueeze(-1)
        scores.scatter_(-1, at, scores.gather(-1, at).masked_fill_(hit, -torch.inf))
        # Without a shift, a row whose only candidate is the target has no greatest score.
        greatest = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)
        total = scores.sub_(greatest).exp_().sum(-1).log_().add_(greatest.squeeze(-1))
        result[part] = of_target[part] - torch.logaddexp(of_target[part], total + log_weight[part])
    return result


def drawn_likelihood(log_likelihood: np.ndarray, temperature: float, seed: Sequence[int]) -> np.ndarray:
    """Log-likelihoods with noise: the largest of a user's is a draw from softmax(log-likelihoods / temperature).

    The stochastic step of CAEM, classification annealing EM (Celeux and Govaert, Computational Statistics & Data
    Analysis 14, 1992), by the Gumbel-max trick. At a temperature of 1, users are drawn from the posterior of groups
    that are equally likely beforehand.

    Args:
        log_likelihood: [n, C].
        temperature: 0 for no noise.
        seed: Of the draw.

    Returns:
        [n, C]
    """
    return log_likelihood + temperature * np.random.default_rng(seed).gumbel(size=log_likelihood.shape)


def most_likely_groups(log_likelihood: np.ndarray, current: np.ndarray, min_group_size: int) -> np.ndarray:
    """The hard E-step: every user goes to his most likely group, but no group falls below `min_group_size`.

    A group that would be too small takes back the users who lose least by it, from groups that can spare them.

    Args:
        log_likelihood: [n, C].
        current: Group of each user now, [n]; ties stay where they are.
        min_group_size: Least number of users of a group; C * min_group_size <= n.

    Returns:
        [n]
    """
    n_users, n_groups = log_likelihood.shape
    check_group_sizes(n_users, n_groups, min_group_size)
    users = np.arange(n_users)
    groups = log_likelihood.argmax(1)
    stays = log_likelihood[users, current] >= log_likelihood[users, groups]
    groups[stays] = current[stays]
    sizes = np.bincount(groups, minlength=n_groups)
    for small in np.flatnonzero(sizes < min_group_size):
        loss = log_likelihood[users, groups] - log_likelihood[:, small]
        loss[groups == small] = np.inf
        for user in np.argsort(loss, kind="stable"):
            if sizes[small] >= min_group_size:
                break
            if sizes[groups[user]] > min_group_size:
                sizes[groups[user]] -= 1
                sizes[small] += 1
                groups[user] = small
    return groups


def warn_if_groups_are_small(groups: np.ndarray, sequence_length: np.ndarray, n_items: int) -> None:
    """Logs the groups' sizes, and a warning where a group has less training data than the catalogue has items.

    Personal modules then tend to hurt: on a shop log of 719 users and 5,361 items, one module beat 8 and 3 groups.

    Args:
        groups: [n].
        sequence_length: Training targets of each user, [n].
        n_items: Size of the catalogue.
    """
    sizes = np.bincount(groups)
    targets = np.bincount(groups, weights=sequence_length)
    LOGGER.info(f"user groups: {len(sizes)} of {', '.join(map(str, sizes))} users")
    small = np.flatnonzero(targets < n_items)
    if len(small):
        LOGGER.warning(
            f"{len(small)} of {len(sizes)} groups have fewer training interactions ({int(targets.min()):,} in the "
            f"smallest) than the catalogue has items ({n_items:,}): personal modules may do worse than GlobalPEFT; "
            "try a smaller n_groups, group_negative_ratio: 0.0 or regroup_every: 2"
        )
