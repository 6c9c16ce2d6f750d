"""Items that compete for lists."""

import numpy as np

from recbole_perpeft.use.topk import Candidates


def drawn_candidates(rng, n_items):
    """Some of the items 1 to `n_items`, at least one."""
    ids = np.flatnonzero(rng.random(n_items + 1) < 0.7)
    return Candidates(ids[ids > 0] if (ids > 0).any() else np.array([1]), n_items + 1)
