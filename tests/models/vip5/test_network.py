"""What vectors of words and names start from."""

import numpy as np
import pytest
import torch

from recbole_perpeft.models.vip5.network import COMMON_VARIANCE, RANDOM, NameVectors, NetworkSettings, VIP5Network
from recbole_perpeft.models.vip5.t5 import WORD_SPREAD
from recbole_perpeft.models.vip5.trie import ItemTrie
from support.small_t5 import make_backbone

N_ITEMS, N_USERS = 40, 400


def make_network(item_words=None, starts=RANDOM):
    backbone = make_backbone(texts=[" ".join(f"word{place}" for place in range(300))])
    trie = ItemTrie(np.arange(N_ITEMS)[:, None], N_ITEMS)
    n_new = N_USERS + (N_ITEMS if item_words is None else 0)
    return VIP5Network(backbone, None, trie, item_words, n_new, NetworkSettings(), starts)


def mean_product(vectors):
    """Mean product of entries of different vectors."""
    n, width = vectors.shape
    return float((vectors.sum(dim=0).square().sum() - vectors.square().sum()) / (n * (n - 1) * width))


def test_names_start_as_large_as_words():
    network = make_network()
    words, names = network.backbone.output_weight.detach(), network.new_tokens.weight.detach()
    assert float(words.std()) == pytest.approx(WORD_SPREAD, rel=0.05)
    for part in (names[:N_ITEMS], names[N_ITEMS:]):
        assert float(part.square().mean().sqrt()) == pytest.approx(WORD_SPREAD, rel=0.15)


@pytest.mark.parametrize("item_words", [None, torch.arange(3, 3 + N_ITEMS)])
def test_users_start_with_half_of_their_variance_in_common_and_items_with_none(item_words):
    network = make_network(item_words)
    names = network.new_tokens.weight.detach() / network.backbone.output_weight.detach().std()
    users = names[-N_USERS:]
    # The common vector has 32 entries of variance 1, whose mean square varies by a quarter.
    assert mean_product(users) == pytest.approx(COMMON_VARIANCE, abs=0.3)
    own = users - users.mean(dim=0)
    assert float(own.square().mean()) == pytest.approx(1 - COMMON_VARIANCE, rel=0.05)
    if item_words is None:
        assert abs(mean_product(names[:N_ITEMS])) < 0.05


def test_names_start_from_given_vectors():
    items, users = torch.randn(N_ITEMS, 32), torch.randn(N_USERS, 32)
    network = make_network(starts=NameVectors(items, users))
    names = network.new_tokens.weight.detach() / network.backbone.output_weight.detach().std()
    assert torch.allclose(names[:N_ITEMS], items, atol=1e-5)
    shift = names[N_ITEMS:] - (1 - COMMON_VARIANCE) ** 0.5 * users
    assert torch.allclose(shift, shift[:1].expand_as(shift), atol=1e-5)  # the same for all users
    assert float(shift[0].square().mean()) == pytest.approx(COMMON_VARIANCE, rel=0.7)


def test_atomic_names_of_users_start_as_those_of_their_train_items(prepare_vip5):
    settings = {"name_init": "content", "id_scheme": "atomic", "user_scheme": "atomic"}
    prepared = prepare_vip5(task_weights={"sequential": 1.0}, **settings)
    model = prepared.model
    network, history = model.network, prepared.train_data.dataset.phase_history
    tokens = network.new_tokens.weight.detach()
    users = tokens[model.writer.user_names[:, 0] - network.backbone.n_words]
    items = tokens[model.writer.item_names[:, 0].clamp(min=0) - network.backbone.n_words]
    means = torch.stack([items[history.items[slice(*history.indptr[user : user + 2])]].mean(dim=0) for user in (1, 7)])
    own = users[[1, 7]] - users[1:].mean(dim=0)
    wanted = torch.nn.functional.cosine_similarity(own, means)
    assert (wanted > 0.9).all()
    assert (wanted > torch.nn.functional.cosine_similarity(own, means.flip(0)) + 0.3).all()
