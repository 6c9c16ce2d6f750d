"""Caches of hidden states of a small shop."""

import torch

from recbole_perpeft.data.content import ItemContent
from recbole_perpeft.store.states import HiddenStateCache

N_ITEMS = 41


def load(folder, field="title", missing_content="error"):
    return ItemContent.load(folder, "shop", [], missing_content, [field])


def open_or_build(folder, settings, field="title", missing_content="error"):
    content = load(folder, field, missing_content)
    return HiddenStateCache.open_or_build(content, field, settings, folder.parent / "cache", show_progress=False)


def all_rows(cache):
    return torch.arange(cache.n_rows)


def files_of(cache):
    return {path.name: path.read_bytes() for path in cache.folder.glob("*.npy")}
