from time import perf_counter

import numpy as np
import pytest
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.utils import create_samplers

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data import evaluation
from recbole_perpeft.data.dataset import SequenceDataset, history_of
from recbole_perpeft.data.evaluation import MaskedFullSortEvalDataLoader, evaluation_loader, rows_of_users
from recbole_perpeft.data.loader import train_loader

# RecBole sorts torch tensors with numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")

N_USERS = 60
NEGATIVES = {"distribution": "uniform", "sample_num": 1, "alpha": 1.0, "dynamic": False}


def random_log(n_users=N_USERS, n_items=40, seed=0):
    rng = np.random.default_rng(seed)
    return [
        (f"u{user}", f"i{item}", time)
        for user in range(n_users)
        for time, item in enumerate(rng.integers(n_items, size=rng.integers(2, 12)))
    ]


@pytest.fixture(scope="module")
def parts(log_folder):
    log_folder.write(random_log())
    return SequenceDataset(log_folder.config(train_windows="newest")).build()


@pytest.fixture
def loader(log_folder, parts):
    return train_loader(log_folder.config(train_batch_size=8, seed=7), parts[0])


@pytest.fixture(scope="module")
def user_group(parts):
    groups = np.random.default_rng(1).choice(4, size=parts[0].user_num, p=[0.55, 0.25, 0.18, 0.02])
    groups[1:4] = 3  # a group of at least three users that no batch fills
    return groups


def epoch(loader):
    return list(loader)


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(one[field], other[field]) for one, other in zip(first, second, strict=True) for field in one
    )


@pytest.mark.parametrize("grouped", [False, True])
def test_every_user_once_an_epoch(loader, parts, user_group, grouped):
    loader.set_groups(user_group if grouped else None)
    batches = epoch(loader)
    assert len(batches) == len(loader)
    users = torch.cat([batch["user_id"] for batch in batches])
    assert users.sort().values.tolist() == parts[0].inter_feat["user_id"].tolist()
    assert max(len(batch) for batch in batches) == 8
    if not grouped:
        assert len(batches) == -(-N_USERS // 8)


def test_a_batch_has_one_group_and_the_order_of_groups_is_mixed(loader, user_group):
    loader.set_groups(torch.from_numpy(user_group))
    orders = []
    for _ in range(3):
        groups = [set(user_group[batch["user_id"].numpy()].tolist()) for batch in loader]
        assert all(len(group) == 1 for group in groups)
        orders.append([group.pop() for group in groups])
    sizes = np.bincount(user_group[1:], minlength=4)
    assert len(orders[0]) == sum(-(-sizes // 8))
    assert len(set(map(tuple, orders))) > 1
    assert any(order != sorted(order) for order in orders)


def test_all_rows_of_a_user_have_his_group_and_avoid_his_whole_history(log_folder, user_group):
    log_folder.write(random_log())
    config = log_folder.config(train_batch_size=8, train_overlap=0.4)
    train = SequenceDataset(config).build()[0]
    assert len(train) > 1.5 * N_USERS
    loader = train_loader(config, train)
    loader.set_groups(user_group)
    batches = epoch(loader)
    users = torch.cat([batch["user_id"] for batch in batches])
    assert len(batches) == len(loader) and torch.equal(users.sort().values, train.inter_feat["user_id"])
    for batch in batches:
        assert len(set(user_group[batch["user_id"].numpy()])) == 1
        assert torch.equal(batch["neg_item_id_list"] == 0, batch["pos_item_id_list"] == 0)
        for user, drawn in zip(batch["user_id"].tolist(), batch["neg_item_id_list"], strict=True):
            assert not set(drawn[drawn > 0].tolist()) & set(train.interactions.rows(np.array([user]))[1].tolist())


def test_rows_and_negatives(loader, parts, user_group):
    train = parts[0]
    loader.set_groups(user_group)
    history = train.phase_history
    by_group = [
        {item for user, item in zip(*history.pairs(), strict=True) if user_group[user] == group} for group in range(4)
    ]
    row_of = {user: row for row, user in enumerate(train.inter_feat["user_id"].tolist())}
    for batch in loader:
        rows = [row_of[user] for user in batch["user_id"].tolist()]
        for field in ("item_id_list", "item_length", "pos_item_id_list"):
            assert torch.equal(batch[field], train.inter_feat[field][rows])
        negatives, positives = batch["neg_item_id_list"], batch["pos_item_id_list"]
        assert torch.equal(negatives == 0, positives == 0)
        for user, drawn in zip(batch["user_id"].tolist(), negatives, strict=True):
            own = set(history.items[history.indptr[user] : history.indptr[user + 1]].tolist())
            pool = by_group[user_group[user]] - own
            assert set(drawn[drawn > 0].tolist()) <= (pool or set(range(1, train.item_num)) - own)


def test_shuffle(log_folder, parts, loader):
    assert loader.shuffle
    assert not same(epoch(loader), epoch(loader))
    fixed = train_loader(log_folder.config(train_batch_size=8, shuffle=False), parts[0])
    for _ in range(2):
        assert torch.equal(torch.cat([batch["user_id"] for batch in fixed]), parts[0].inter_feat["user_id"])


def test_an_interrupted_training_continues_exactly(log_folder, parts, loader, user_group, tmp_path):
    loader.set_groups(user_group, 0.5)
    epoch(loader)
    torch.save(loader.get_state(), tmp_path / "state.pt")
    expected = [epoch(loader), epoch(loader)]
    resumed = train_loader(log_folder.config(train_batch_size=8, seed=1), parts[0])
    resumed.set_groups(user_group, 0.5)
    resumed.set_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert all(same(batches, epoch(resumed)) for batches in expected)
    again = train_loader(log_folder.config(train_batch_size=8, seed=7), parts[0])
    assert same(epoch(again), epoch(train_loader(log_folder.config(train_batch_size=8, seed=7), parts[0])))


def test_what_recboles_collector_reads(loader, parts):
    assert loader.dataset is loader._dataset is parts[0]
    assert loader.dataset.num("item_id") == parts[0].item_num
    assert sum(loader.dataset.item_counter.values()) == sum(loader.dataset.user_counter.values())


def test_batches_cost_little(log_folder):
    """The limit is ten times what an idle core needs."""
    log_folder.write(random_log(n_users=3_000, n_items=2_000))
    config = log_folder.config(train_batch_size=256, MAX_ITEM_LIST_LENGTH=10)
    loader = train_loader(config, SequenceDataset(config).build()[0])
    loader.set_groups(np.arange(loader.dataset.user_num) % 4)
    epoch(loader)
    best = min(_seconds_a_batch(loader) for _ in range(5))
    assert best < 5e-3


def _seconds_a_batch(loader):
    start = perf_counter()
    n_batches = len(epoch(loader))
    return (perf_counter() - start) / n_batches


def masked_pairs(history_index):
    return set() if history_index is None else set(zip(*(index.tolist() for index in history_index), strict=True))


def datasets(log_folder, model, dataset_class, eval_batch_size=64, **settings):
    log_folder.write(random_log())
    config = log_folder.config(model, eval_batch_size=eval_batch_size, **settings)
    dataset = dataset_class(config)
    return config, dataset, dataset.build()


@pytest.mark.parametrize(("phase", "number"), [("valid", 1), ("test", 2)])
@pytest.mark.parametrize("mask_history", ["all", "keep_target", "none"])
@pytest.mark.parametrize("dataset_class", [SequentialDataset, SequenceDataset])
def test_masks_of_sequential_models(log_folder, dataset_class, mask_history, phase, number):
    config, dataset, built = datasets(log_folder, "SASRec", dataset_class, mask_history=mask_history)
    loader = evaluation_loader(config, built, phase)
    purchases = {}
    for user, item, _ in random_log():
        purchases.setdefault(dataset.token2id("user_id", user), []).append(int(dataset.token2id("item_id", item)))
    n_rows = n_targets_seen_before = 0
    for interaction, history_index, positive_u, positive_i in loader:
        assert torch.equal(positive_u, torch.arange(len(interaction)))
        assert torch.equal(positive_i, interaction["item_id"])
        expected = set()
        for row, user in enumerate(interaction["user_id"].tolist()):
            *before, target = purchases[user] if phase == "test" else purchases[user][:-1]
            assert positive_i[row] == target
            n_targets_seen_before += target in before
            masked = {"all": set(before), "keep_target": set(before) - {target}, "none": set()}[mask_history]
            expected |= {(row, item) for item in masked}
        assert masked_pairs(history_index) == expected
        assert (history_index is None) == (mask_history == "none")
        n_rows += len(interaction)
    assert n_rows == len(built[number]) and n_targets_seen_before > 0


@pytest.mark.parametrize(("phase", "number"), [("valid", 1), ("test", 2)])
def test_keep_target_is_recboles_own_mask_of_general_models(log_folder, phase, number):
    config, dataset, built = datasets(
        log_folder, "BPR", Dataset, eval_batch_size=500, mask_history="keep_target", train_neg_sample_args=NEGATIVES
    )
    sampler = create_samplers(config, dataset, built)[number]
    ours = evaluation_loader(config, built, phase)
    theirs = FullSortEvalDataLoader(config, built[number], sampler)
    assert isinstance(ours, FullSortEvalDataLoader)
    for part in (slice(1, 2), slice(2, 4)):
        assert pairs_of_users(ours, part) == pairs_of_users(theirs, part)


def pairs_of_users(loader, part):
    """(user, item) pairs of all batches; RecBole's batches are smaller."""
    result = set()
    for batch in loader:
        rows, items = batch[1] if part.start == 1 else batch[part]
        users = batch[0]["user_id"][rows]
        result |= set(zip(users.tolist(), items.tolist(), strict=True))
    return result


def test_an_evaluation_batch_is_a_number_of_users_for_every_model(log_folder):
    config, _, built = datasets(log_folder, "BPR", Dataset, eval_batch_size=3, train_neg_sample_args=NEGATIVES)
    loader = MaskedFullSortEvalDataLoader(config, built[2], None, history_of(built, "test"))
    assert [len(batch[0]) for batch in loader][:-1] == [3] * (len(loader) - 1)


def test_a_large_catalogue_leaves_fewer_users_a_batch(log_folder, monkeypatch):
    config, _, built = datasets(log_folder, "BPR", Dataset, eval_batch_size=64, train_neg_sample_args=NEGATIVES)
    for scores, n_users in ((5 * built[2].item_num + 1, 5), (1, 1), (10**9, 64)):
        monkeypatch.setattr(evaluation, "_SCORES_AT_ONCE", scores)
        loader = MaskedFullSortEvalDataLoader(config, built[2], None, history_of(built, "test"))
        assert len(next(iter(loader))[0]) == min(n_users, len(built[2]))


@pytest.mark.parametrize("mask_history", ["all", "none"])
def test_other_masks_of_general_models(log_folder, mask_history):
    config, _, built = datasets(log_folder, "BPR", Dataset, mask_history=mask_history)
    history = history_of(built, "test")
    loader = MaskedFullSortEvalDataLoader(config, built[2], None, history)
    for interaction, history_index, _, _ in loader:
        rows, items = history.rows(interaction["user_id"].numpy())
        expected = set(zip(rows.tolist(), items.tolist(), strict=True)) if mask_history == "all" else set()
        assert masked_pairs(history_index) == expected


def test_unknown_mask(log_folder):
    with pytest.raises(PerPEFTError, match="all, keep_target, none"):
        datasets(log_folder, "SASRec", SequenceDataset, mask_history="some")


def test_batches_of_groups_that_rest_are_not_made_and_the_others_stay_what_they_are(loader, user_group):
    loader.set_groups(user_group, 0.5)
    state, numbers = loader.get_state(), range(len(loader))
    all_batches = list(loader.numbered(numbers, 3))
    loader.set_state(state)
    some = list(loader.numbered(numbers, 3, resting={0, 2}))
    assert [batch is None for batch in some] == [user_group[batch["user_id"][0]] in (0, 2) for batch in all_batches]
    pairs = [(whole, part) for whole, part in zip(all_batches, some, strict=True) if part is not None]
    assert 0 < len(pairs) < len(some) and same(*zip(*pairs, strict=True))


@pytest.mark.parametrize("size", [7, 1000])
def test_rows_of_some_users_are_evaluated_in_the_batches_that_they_have_among_all(log_folder, parts, size):
    whole = evaluation_loader(log_folder.config(eval_batch_size=size), parts, "valid")
    wanted = np.random.default_rng(size).random(parts[0].user_num) < 0.3
    wanted[whole.users_of_rows()[: min(size, 20)]] = False  # a batch of which nothing is left
    expected = [rows["user_id"][wanted[rows["user_id"]]].tolist() for rows, *_ in whole]
    found = list(rows_of_users(whole, wanted))
    assert [rows["user_id"].tolist() for rows, *_ in found] == [users for users in expected if users]
    for rows, _, of_target, targets in found:
        assert torch.equal(of_target, torch.arange(len(rows))) and torch.equal(targets, rows["item_id"])
