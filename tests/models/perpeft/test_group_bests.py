"""Groups that are independent of each other: each keeps its best epoch, or the global modules."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel
from torch import nn

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.models.perpeft.group_bests import FALLBACK, GroupBests, gains_of_groups, scores_of_groups
from recbole_perpeft.models.perpeft.trainer import PerPEFTTrainer
from recbole_perpeft.nn.adapt.groups import GroupModules, freeze_shared, group_state
from recbole_perpeft.runs.run import load, run

FREEZE = {"shared_in_groups": "freeze", "epochs": 6, "epochs_global": 6, "learning_rate": 3e-3, "stopping_step": 1}


def some_model(n_groups=3):
    model = nn.ModuleDict({"shared": nn.Linear(2, 2), "owned": GroupModules(nn.Linear(2, 2))})
    model["owned"].personalise(n_groups)
    return model


def test_each_group_keeps_what_was_best_for_it():
    random = np.random.default_rng(0)
    scores = random.random((8, 3)).tolist()
    scores[0][2] = 2.0  # nothing later is better
    model, bests = some_model(), GroupBests(bigger=True, patience=2)
    bests.start(model, scores[0])
    weights, waited = [group_state(model, group) for group in range(3)], [0, 0, 0]
    best = list(scores[0])
    for epoch, row in enumerate(scores[1:]):
        with torch.no_grad():
            for group in range(3):
                model["owned"].of(group).weight.fill_(epoch + group / 10)
        improved = bests.update(model, row, epoch)
        assert improved == any(new > old for new, old in zip(row, best, strict=True))
        for group in range(3):
            waited[group] += 1
            if row[group] > best[group]:
                best[group], weights[group], waited[group] = row[group], group_state(model, group), 0
            assert bests.is_finished(group) == (waited[group] > 2)
    current = [group_state(model, group) for group in range(3)]
    with bests.in_place(model):
        for group in range(3):
            assert all(torch.equal(weights[group][name], t) for name, t in group_state(model, group).items())
    for group in range(3):
        assert all(torch.equal(current[group][name], t) for name, t in group_state(model, group).items())
    assert bests.epochs[2] == FALLBACK and "1 keep the global module: 2" in bests.summary(0)


def test_a_group_without_valid_users_keeps_the_global_modules():
    scores = scores_of_groups(np.array([0, 2, 0]), 3, torch.tensor([1, 2, 4]), lambda ranks: float(ranks.sum()))
    assert scores == [5.0, None, 2.0]
    bests = GroupBests(bigger=False, patience=9)
    bests.start(some_model(), scores)
    assert bests.update(some_model(), [6.0, None, 1.0], epoch=0)
    assert bests.epochs == [FALLBACK, FALLBACK, 0] and bests.is_finished(1) and not bests.is_finished(0)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_gains_are_the_statistics_of_paired_tests(seed):
    random = np.random.default_rng(seed)
    groups = random.integers(-1, 3, 60)
    before, after = random.random((2, 60)).astype(np.float32)
    before[random.random(60) < 0.2] = np.nan
    found = gains_of_groups(before, after, groups, 3)
    for group in range(3):
        own = (groups == group) & ~np.isnan(before)
        if own.sum() > 1:
            expected = ttest_rel(after[own].astype(np.float64), before[own].astype(np.float64)).statistic
            assert found[group] == pytest.approx(expected, rel=1e-4)


def test_gains_of_few_or_equal_users():
    before, after = np.array([0.1, 0.5, 0.5, np.nan, 0.2]), np.array([0.9, 0.75, 0.75, 1.0, 0.2])
    assert gains_of_groups(before, after, np.array([0, 1, 1, 2, 3]), 4) == [0.0, np.inf, 0.0, 0.0]


def test_a_group_leaves_the_global_modules_for_a_gain_beyond_the_margin_alone():
    bests = GroupBests(bigger=True, patience=9, margin=1.0)
    bests.start(some_model(), [0.5, 0.5, 0.5])
    assert bests.update(some_model(), [0.6, 0.6, 0.4], epoch=0, gains=[0.9, 1.0, -2.0])
    assert bests.epochs == [FALLBACK, 0, FALLBACK] and bests.waited == [1, 0, 1]
    assert bests.update(some_model(), [0.5, 0.61, 0.7], epoch=1, gains=[0.0, 0.5, 3.0])  # it has left them already
    assert bests.epochs == [FALLBACK, 1, 1]
    again = GroupBests(bigger=True, patience=9, margin=1.0)
    bests.global_values = torch.tensor([0.25, torch.nan])
    again.load(bests.state())
    assert torch.equal(again.global_values[:1], bests.global_values[:1]) and again.epochs == bests.epochs


def test_no_group_leaves_the_global_modules_where_none_gains_so_much(aspects_settings):
    ours = run("PerPEFT", config_dict=aspects_settings | FREEZE | {"epochs": 1, "fallback_margin": 50.0})
    assert ours["group_best_epochs"] == [None, None, None]
    with pytest.raises(PerPEFTError, match="set shared_in_groups to freeze, or fallback_margin to 0"):
        run("PerPEFT", config_dict=aspects_settings | {"fallback_margin": 1.0})


def test_a_group_goes_on_and_is_kept_where_it_moves_the_rounded_score_of_all_by_nothing():
    trainer = object.__new__(PerPEFTTrainer)
    trainer.model = SimpleNamespace(personalised_stage=True)
    trainer.group_settings, trainer.stage = SimpleNamespace(shared_in_groups="freeze"), "personalised"
    trainer.group_bests, trainer.stopping_step = GroupBests(bigger=True, patience=1), 1
    trainer.best_valid_score, trainer.best_valid_result, trainer.cur_step = 0.5, {"hit@1": 0.5}, 0
    trainer.group_bests.start(some_model(), [0.4, 0.6, None])
    judged = []
    for score in (0.1, 0.4001, 0.1, 0.1):
        trainer.group_bests.update(some_model(), [score, 0.6, None], epoch=0)
        judged.append((trainer._judge(0.5, {"hit@1": 0.51}), trainer.cur_step, trainer.best_valid_result["hit@1"]))
    assert judged == [(False, 1, 0.5), (True, 0, 0.51), (False, 1, 0.51), (False, 2, 0.51)]
    assert trainer.group_bests.finished() == {0, 1, 2}


def test_nothing_but_the_groups_own_trains():
    model = some_model()
    model["owned"].of(0).bias.requires_grad_(False)
    freeze_shared(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"owned.0.weight", "owned.1.weight", "owned.1.bias", "owned.2.weight", "owned.2.bias"}


@pytest.mark.parametrize("way", [{}, {"peft_type": "iisan", "peft_config": {"n_blocks": 2}}], ids=["lora", "iisan"])
def test_perpeft_is_on_its_valid_users_never_below_the_global_peft_it_starts_from(aspects_settings, way):
    chosen = aspects_settings | FREEZE | way
    ours, baseline = (run(name, config_dict=chosen) for name in ("PerPEFT", "GlobalPEFT"))
    assert ours["best_valid_score"] >= baseline["best_valid_score"]
    epochs = ours["group_best_epochs"]
    assert len(epochs) == 3 and all(epoch is None or 1 <= epoch <= 6 for epoch in epochs)
    assert (ours["best_valid_score"] > baseline["best_valid_score"]) == any(epoch is not None for epoch in epochs)
    personal, shared = (load(result["run_folder"])[1] for result in (ours, baseline))
    state = personal.state_dict()
    for name, tensor in shared.state_dict().items():
        if isinstance(tensor, torch.Tensor) and name not in ("user_group", "group_centroids"):
            assert torch.equal(state[name], tensor), name
    config, model, _, _, valid_data, _ = load(ours["run_folder"])
    config["checkpoint_dir"] = ours["run_folder"]
    found = model.trainer_class(config, model).evaluate(valid_data, load_best_model=False)
    assert found == pytest.approx(ours["best_valid_result"])


def test_what_groups_started_from_must_be_known_where_settings_change():
    GroupBests(True, 1).check_start(has_trained=False)
    with pytest.raises(PerPEFTError, match="freeze was not set when groups began to train"):
        GroupBests(True, 1).check_start(has_trained=True)
    GroupBests(True, 1, scores=[0.5]).check_start(has_trained=True)
    with pytest.raises(PerPEFTError, match="fallback_margin is 2, but it was 0"):
        GroupBests(True, 1, margin=2.0, scores=[0.5]).check_start(has_trained=True)
    GroupBests(True, 1, margin=2.0, scores=[0.5], global_values=torch.ones(3)).check_start(has_trained=True)


def test_freeze_without_evaluations_is_refused(aspects_settings):
    with pytest.raises(PerPEFTError, match="eval_step is 0: set it to 1"):
        run("PerPEFT", config_dict=aspects_settings | {"shared_in_groups": "freeze", "eval_step": 0})


def test_a_model_without_groups_does_not_ask_for_what_groups_need(aspects_settings):
    drawn = aspects_settings | {"shared_in_groups": "freeze", "epochs": 1, "eval_args": {"mode": "uni20"}}
    assert run("GlobalPEFT", config_dict=drawn)["best_valid_score"] > 0
    with pytest.raises(PerPEFTError, match="freeze needs one valid item a user"):
        run("PerPEFT", config_dict=drawn)


def test_what_cannot_be_combined_is_told(aspects_settings):
    with pytest.raises(PerPEFTError, match="set regroup_every to 0, or shared_in_groups to train"):
        run("PerPEFT", config_dict=aspects_settings | FREEZE | {"regroup_every": 1})
    with pytest.raises(PerPEFTError, match="no metric of ranks alone"):
        run("PerPEFT", config_dict=aspects_settings | FREEZE | {"metrics": ["GAUC"], "valid_metric": "GAUC"})
