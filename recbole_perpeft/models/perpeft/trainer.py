"""Training of PerPEFT in three stages: global, grouping, personalised (PerPEFT section 3)."""

from typing import Any

import numpy as np
import torch
from recbole.utils import set_color
from torch import Tensor

from recbole_perpeft.data.dataset import history_of
from recbole_perpeft.models.perpeft.grouping import (
    check_group_sizes,
    given_groups,
    global_user_vectors,
    kmeans_groups,
    mean_vectors,
    most_likely_groups,
    random_groups,
    sequence_log_likelihood,
    warn_if_groups_are_small,
)
from recbole_perpeft.training.rates import ContentTrainer

__all__ = ["PerPEFTTrainer"]


class PerPEFTTrainer(ContentTrainer):
    """Trains the global stage, groups the users, trains the personalised stage.

    The global stage of `PerPEFT` always runs `epochs_global` epochs. Early stopping and the best checkpoint belong
    to the last stage: the personalised one, or for `GlobalPEFT` the only one.
    """

    def __init__(self, config, model) -> None:
        super().__init__(config, model)
        self.stage = "global"
        self.group_settings = model.group_settings

    def fit(self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None):
        """Runs the stages that are still to do; arguments and result as in RecBole."""
        self._train_data = train_data
        arguments = {"verbose": verbose, "show_progress": show_progress, "callback_fn": callback_fn}
        if not self.model.personalised_stage:
            return super().fit(train_data, valid_data, saved=saved, **arguments)
        settings, last_stage = self.group_settings, (self.epochs, self.stopping_step)
        if self.stage == "global":
            check_group_sizes(len(train_data.dataset.interactions.users), settings.n_groups, settings.min_group_size)
            self._announce(f"stage 1 of 3: global PEFT, {settings.epochs_global} epochs", verbose)
            self.epochs, self.stopping_step = settings.epochs_global, np.inf
            super().fit(train_data, valid_data, saved=False, **arguments)
            self._announce(f"stage 2 of 3: user grouping by {settings.grouping}", verbose)
            self._start_personalised_stage(train_data, valid_data)
        self.epochs, self.stopping_step = settings.epochs_global + last_stage[0], last_stage[1]
        train_data.set_groups(self.model.user_group, settings.group_negative_ratio)
        self._announce(f"stage 3 of 3: personalised PEFT, {last_stage[0]} epochs", verbose)
        return super().fit(train_data, valid_data, saved=saved, **arguments)

    def _announce(self, sentence: str, verbose: bool) -> None:
        if verbose:
            self.logger.info(set_color(sentence, "pink"))

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        loss = super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)
        settings = self.group_settings
        done = epoch_idx + 1 - settings.epochs_global
        if self.stage == "personalised" and settings.regroup_every and done % settings.regroup_every == 0:
            self._regroup(train_data)
        return loss

    def _save_checkpoint(self, epoch, verbose=True, **kwargs) -> None:
        if self.model.n_groups:
            self._refresh_centroids()
        super()._save_checkpoint(epoch, verbose=verbose, **kwargs)

    def _refresh_centroids(self) -> None:
        """Centroids of the groups as they are now: the user encoder has learnt since the grouping."""
        self.model.eval()
        groups = self.model.group_of(torch.from_numpy(self._train_data.dataset.interactions.users))
        centroids = mean_vectors(self._global_user_vectors(self._train_data), groups, self.model.n_groups)
        self.model.set_groups(self.model.user_group, centroids)

    def _start_personalised_stage(self, train_data, valid_data) -> None:
        """Stage 2, and what stage 3 starts from: groups, copies of the global module, a new optimiser."""
        self.model.eval()
        users, groups = self._group_users(train_data, valid_data)
        n_groups = int(groups.max()) + 1
        user_group = torch.full((self.model.n_users,), -1)
        user_group[users] = groups
        self.model.personalise(user_group, mean_vectors(self._global_user_vectors(train_data), groups, n_groups))
        n_targets = train_data.dataset.target_counts()[users]
        warn_if_groups_are_small(groups.numpy(), n_targets, self.model.n_items - 1)
        self.stage = "personalised"
        self.start_epoch = self.group_settings.epochs_global
        self.optimizer = self._build_optimizer()
        self.cur_step = 0
        self.best_valid_score = -np.inf if self.valid_metric_bigger else np.inf
        self.best_valid_result = None

    def _group_users(self, train_data, valid_data) -> tuple[np.ndarray, Tensor]:
        """Users with training items, [n], and their groups, [n]."""
        settings, seed = self.group_settings, self.config["seed"]
        users = train_data.dataset.interactions.users
        if settings.grouping == "user_field":
            groups = given_groups(train_data.dataset, settings.group_field, users)
        elif settings.grouping == "random":
            groups = random_groups(len(users), settings.n_groups, settings.min_group_size, seed)
        else:
            last = valid_data if settings.grouping_history == "train_valid" else None
            vectors = self._global_user_vectors(train_data, last).numpy()
            groups = kmeans_groups(vectors, settings.n_groups, settings.min_group_size, seed)
        return users, torch.from_numpy(groups)

    def _global_user_vectors(self, train_data, valid_data=None) -> Tensor:
        """Vectors of the users with training items under the global module, [n, d] on the CPU.

        Args:
            train_data: Gives the users and their training items.
            valid_data: If given, the validation item is part of the history.
        """
        history = train_data.dataset.interactions
        users = history.users
        if valid_data is not None:
            history = history_of([train_data.dataset, valid_data.dataset, valid_data.dataset], "test")
        return global_user_vectors(self.model, users, history)

    def _regroup(self, train_data) -> None:
        """Hard E-step: every user moves to the group whose modules make his training rows most likely."""
        model, settings = self.model.eval(), self.group_settings
        rows, users = train_data.dataset.inter_feat, train_data.dataset.interactions.users
        of_rows = torch.stack([sequence_log_likelihood(model, rows, g) for g in range(model.n_groups)], dim=1).double()
        of_users = of_rows.new_zeros(model.n_users, model.n_groups).index_add_(0, rows[model.USER_ID], of_rows)
        before = model.group_of(torch.from_numpy(users)).numpy()
        groups = most_likely_groups(of_users[users].numpy(), before, settings.min_group_size)
        user_group = model.user_group.cpu().clone()
        user_group[users] = torch.from_numpy(groups)
        model.set_groups(user_group, model.group_centroids)
        train_data.set_groups(user_group, settings.group_negative_ratio)
        sizes = ", ".join(map(str, np.bincount(groups, minlength=model.n_groups)))
        self.logger.info(f"regrouped: {int((groups != before).sum())} users moved, groups of {sizes} users")

    def extra_state(self) -> dict[str, Any]:
        """The stage to go on with."""
        return {**super().extra_state(), "stage": self.stage}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Undoes `extra_state`."""
        super().load_extra_state(state)
        self.stage = state["stage"]
