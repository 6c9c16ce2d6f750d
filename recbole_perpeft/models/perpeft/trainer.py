"""Training of PerPEFT in three stages: global, grouping, personalised (PerPEFT section 3)."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.utils import set_color
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.dataset import history_of
from recbole_perpeft.data.evaluation import rows_of_users
from recbole_perpeft.models.perpeft.global_run import read_global_run
from recbole_perpeft.models.perpeft.group_bests import GroupBests, check_choice, gains_of_groups, scores_of_groups
from recbole_perpeft.models.perpeft.grouping import (
    check_group_sizes,
    drawn_likelihood,
    given_groups,
    global_user_vectors,
    kmeans_groups,
    likelihood_candidates,
    mean_vectors,
    most_likely_groups,
    random_groups,
    sequence_log_likelihood,
    warn_if_groups_are_small,
)
from recbole_perpeft.nn.adapt.groups import freeze_shared
from recbole_perpeft.training.checkpoint import restored
from recbole_perpeft.training.rank_metrics import mean_of_ranks, metric_of_ranks
from recbole_perpeft.training.rates import ContentTrainer, LearningRateSettings
from recbole_perpeft.training.workers import ALONE, Workers

__all__ = ["PerPEFTTrainer"]


class PerPEFTTrainer(ContentTrainer):
    """Trains the global stage, groups the users, trains the personalised stage.

    The global stage of `PerPEFT` runs `epochs_global` epochs. Early stopping and the best checkpoint belong to the
    last stage: the personalised one, or for `GlobalPEFT` the only one.

    With `shared_in_groups: freeze` the global stage stops early too and ends at its best epoch. What all groups share
    rests from then on, and each group stops early and keeps its own best epoch, or the global modules.

    Attributes:
        group_bests: With `freeze`, what each group keeps.
        only_group: The one that trains here, if others train elsewhere; scores and metrics are then of its users.
    """

    stage = "global"

    def __init__(self, config, model, workers: Workers = ALONE) -> None:
        self.group_settings = model.group_settings
        super().__init__(config, model, workers)
        self.global_epochs = self.group_settings.epochs_global
        self.group_bests = GroupBests(
            self.valid_metric_bigger, self.stopping_step, self.group_settings.fallback_margin
        )
        self.only_group: int | None = None
        self.regroupings: list[dict[str, Any]] = []
        self._first_groups = torch.empty(0, dtype=torch.int64)

    def fit(self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None):
        """Runs the stages that are still to do; arguments and result as in RecBole."""
        self._train_data = train_data
        self.take_data(train_data)
        arguments = {"verbose": verbose, "show_progress": show_progress, "callback_fn": callback_fn}
        if not self.model.personalised_stage:
            return super().fit(train_data, valid_data, saved=saved, **arguments)
        if self._freezes:
            check_choice(self.config, self.group_settings.fallback_margin, valid_data)
        self.group_settings.check_epochs(self.epochs)
        settings, last_stage = self.group_settings, (self.epochs, self.stopping_step)
        if self.stage == "global":
            self._check_sizes(train_data)
            if settings.global_run:
                self._announce(f"stage 1 of 3: the global PEFT of {settings.global_run}", verbose)
                self._take_global_model(Path(settings.global_run), train_data)
            else:
                self._announce(f"stage 1 of 3: global PEFT, {settings.epochs_global} epochs", verbose)
                self.epochs, self.stopping_step = settings.epochs_global, last_stage[1] if self._freezes else np.inf
                super().fit(train_data, valid_data, saved=self._freezes, **arguments)
                if self._freezes:
                    self.load_model()
            self._announce(f"stage 2 of 3: user grouping by {settings.grouping}", verbose)
            self._start_personalised_stage(train_data, valid_data)
        self.epochs, self.stopping_step = self.global_epochs + last_stage[0], last_stage[1]
        train_data.set_groups(self.model.user_group, settings.group_negative_ratio)
        self._announce(f"stage 3 of 3: personalised PEFT, {last_stage[0]} epochs", verbose)
        if self._freezes:
            self.group_bests.check_start(self.start_epoch > self.global_epochs)
        if self._freezes and not self.group_bests.scores:
            self._start_from_global_modules(valid_data, show_progress)
        result = self._fit_personalised(train_data, valid_data, saved=saved, **arguments)
        if self._freezes and verbose:
            self.logger.info(self.group_bests.summary(self.global_epochs))
        return result

    def _fit_personalised(self, train_data, valid_data, **arguments):
        return super().fit(train_data, valid_data, **arguments)

    def stages(self, train_data, valid_data) -> Iterator[tuple[str, int]]:
        """As in `RunTrainer`; a global stage that is taken from another run has no epochs."""
        if not self.model.personalised_stage:
            yield self.stage, self.epochs
            return
        self._train_data, settings = train_data, self.group_settings
        self.group_settings.check_epochs(self.epochs)
        self._check_sizes(train_data)
        yield self.stage, 0 if settings.global_run else settings.epochs_global
        self._start_personalised_stage(train_data, valid_data)
        train_data.set_groups(self.model.user_group, settings.group_negative_ratio)
        if self._freezes:
            check_choice(self.config, self.group_settings.fallback_margin, valid_data)
            self._start_from_global_modules(valid_data, False)
        yield self.stage, self.epochs

    def _take_global_model(self, run_folder: Path, train_data) -> None:
        """The best model of a finished run in the place of the global stage."""
        content = read_global_run(run_folder, self.config, train_data.dataset)
        self._load_model_state(content, run_folder / "best.pth")

    def extra_result(self) -> dict[str, Any]:
        """`group_best_epochs` of independent groups, as `GroupBests.best_epochs`; `regroupings` where users move."""
        found: dict[str, Any] = {"regroupings": self.regroupings} if self.regroupings else {}
        if self._is_independent:
            found["group_best_epochs"] = self.group_bests.best_epochs(self.global_epochs)
        return found

    def _check_sizes(self, train_data) -> None:
        """Whether there are users enough for the groups, before the global stage is trained."""
        settings, users = self.group_settings, train_data.dataset.interactions.users
        if settings.grouping != "user_field":
            check_group_sizes(len(users), settings.n_groups, settings.min_group_size)
        else:
            groups = given_groups(train_data.dataset, settings.group_field, users)
            settings.check_given(int(groups.max()) + 1, len(users))

    @property
    def _temperature(self) -> float:
        """Of a regrouping at the end of this epoch, in mean targets of a user; above 0, groups are still drawn."""
        return self.group_settings.temperature(self.start_epoch - self.global_epochs)

    @property
    def _freezes(self) -> bool:
        """Whether groups are independent of each other."""
        return self.model.personalised_stage and self.group_settings.shared_in_groups == "freeze"

    @property
    def _is_independent(self) -> bool:
        return self._freezes and self.stage == "personalised"

    @property
    def first_epoch(self) -> int:
        """Each stage has a schedule of its own."""
        return self.global_epochs if self.stage == "personalised" else 0

    def _announce(self, sentence: str, verbose: bool) -> None:
        if verbose:
            self.logger.info(set_color(sentence, "pink"))

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        if self._is_independent:  # what a group draws must not depend on which others still train
            self.draws_by_number, self.resting = True, self.group_bests.finished()
        loss = super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)
        settings = self.group_settings
        done = epoch_idx + 1 - self.global_epochs
        if self.stage == "personalised" and settings.regroup_every and done % settings.regroup_every == 0:
            self._regroup(train_data)
        return loss

    def _valid_epoch(self, valid_data, show_progress=False):
        """Score and metrics; of independent groups, those of the modules that each would keep."""
        if self.stage == "personalised" and self._has_strangers(valid_data):
            self._refresh_centroids()  # as the checkpoint of this epoch will have them
        rows = self._unfinished_rows(valid_data) if self._is_independent else valid_data
        score, result = super()._valid_epoch(rows, show_progress=show_progress)
        if self._freezes and self.target_ranks is None:
            raise PerPEFTError("shared_in_groups: freeze needs one valid item a user; split by leave-one-out")
        if not self._is_independent:
            return score, result
        improved = self.group_bests.update(self.model, self._group_scores(), self.start_epoch, self._gains())
        if self.only_group is not None:
            return score, result
        if not improved:
            return self.best_valid_score, self.best_valid_result
        with self.group_bests.in_place(self.model):
            return super()._valid_epoch(valid_data, show_progress=show_progress)

    def _has_strangers(self, valid_data) -> bool:
        """Whether users without train items are evaluated, whose group is that of the nearest centroid."""
        users = valid_data._dataset.inter_feat[self.config["USER_ID_FIELD"]]
        return bool((self.model.user_group.cpu()[users] < 0).any())

    def _unfinished_rows(self, valid_data):
        """Rows of users whose groups still train; all rows if there are none, or if processes share them."""
        wanted = ~np.isin(self.model.user_group.cpu().numpy(), [-1, *self.resting])
        return rows_of_users(valid_data, wanted) if wanted.any() and self.workers.size == 1 else valid_data

    def _judge(self, score: float, result: dict[str, float]) -> bool:
        """As in `RunTrainer`, but nothing is waited for while groups are drawn.

        Independent groups go on while one of them does, however little it moves the whole.
        """
        if not self._is_independent:
            improved = super()._judge(score, result)
            if self.stage == "personalised" and self._temperature:
                self.cur_step = 0
            return improved
        self.cur_step = self.group_bests.waited_by_all()
        if self.cur_step == 0:
            self.best_valid_score, self.best_valid_result = score, result
        return self.cur_step == 0

    def _group_scores(self) -> list[float | None]:
        """The valid metric of each group's users, from the latest evaluation."""
        found = self.target_ranks
        groups = self.model.group_of(found.users).numpy()
        metric = partial(mean_of_ranks, self.config, self.valid_metric)
        return scores_of_groups(groups, self.model.n_groups, found.ranks, metric)

    def _values_of_users(self) -> np.ndarray:
        """The valid metric of each user, from the latest evaluation, float32 [n_users]; NaN where he has none."""
        found, values = self.target_ranks, np.full(self.model.n_users, np.nan, dtype=np.float32)
        values[found.users.numpy()] = metric_of_ranks(self.valid_metric, found.ranks.numpy())
        return values

    def _gains(self) -> list[float] | None:
        """What groups gain over the global modules in the latest evaluation; None where any gain counts."""
        if not self.group_bests.margin:
            return None
        before, groups = self.group_bests.global_values.numpy(), self.model.user_group.cpu().numpy()
        return gains_of_groups(before, self._values_of_users(), groups, self.model.n_groups)

    def _start_from_global_modules(self, valid_data, show_progress: bool) -> None:
        """What groups must beat: the modules that all of them start from."""
        score, result = super()._valid_epoch(valid_data, show_progress=show_progress)
        self.group_bests.start(self.model, self._group_scores())
        if self.group_bests.margin:
            self.group_bests.global_values = torch.from_numpy(self._values_of_users())
        self.best_valid_score, self.best_valid_result = score, result
        self._save_checkpoint(self.start_epoch - 1, verbose=False)

    def _save_checkpoint(self, epoch, verbose=True, **kwargs) -> None:
        if self.model.n_groups:
            self._refresh_centroids()
        with self.group_bests.in_place(self.model) if self._is_independent else nullcontext():
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
        self.stage, self.global_epochs = "personalised", self.start_epoch
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
        return users, self._as_first(torch.from_numpy(groups))

    def _as_first(self, groups: Tensor) -> Tensor:
        """Groups as the first process has them: on another machine, a last digit may decide otherwise."""
        return self.workers.gather(groups)[0]

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

    def _likelihoods(self, train_data) -> Tensor:
        """Log-likelihood of each user's training rows under each group, float64 [n_users, C] on the CPU."""
        model, rows = self.model.eval(), train_data.dataset.inter_feat
        drawn = likelihood_candidates(
            model.n_items, self.group_settings.regroup_candidates, (self.config["seed"], self.start_epoch)
        )
        likelihood = partial(sequence_log_likelihood, model, rows, candidates=drawn)
        of_rows = torch.stack([likelihood(group) for group in range(model.n_groups)], dim=1).double()
        return of_rows.new_zeros(model.n_users, model.n_groups).index_add_(0, rows[model.USER_ID], of_rows)

    def _regroup(self, train_data) -> None:
        """E-step: every user moves to the group whose modules make his training rows likeliest, or to a drawn one."""
        model, settings, users = self.model, self.group_settings, train_data.dataset.interactions.users
        of_users = self._likelihoods(train_data)[users]
        n_targets = train_data.dataset.target_counts()[users].mean()
        if settings.group_mixing:
            weights = torch.zeros(model.n_users, model.n_groups)
            weights[users] = (of_users / (settings.group_mixing * n_targets)).softmax(1).float()
            model.group_weights = self._as_first(weights).to(model.device)
        before = model.group_of(torch.from_numpy(users)).numpy()
        seed = (self.config["seed"], self.start_epoch, 1)
        noisy = drawn_likelihood(of_users.numpy(), self._temperature * n_targets, seed)
        groups = most_likely_groups(noisy, before, settings.min_group_size)
        groups = self._as_first(torch.from_numpy(groups)).numpy()
        self._note_regrouping(before, groups)
        user_group = model.user_group.cpu().clone()
        user_group[users] = torch.from_numpy(groups)
        model.set_groups(user_group, model.group_centroids)
        train_data.set_groups(user_group, settings.group_negative_ratio)
        sizes = ", ".join(map(str, np.bincount(groups, minlength=model.n_groups)))
        self.logger.info(f"regrouped: {int((groups != before).sum())} users moved, groups of {sizes} users")

    def _note_regrouping(self, before: np.ndarray, groups: np.ndarray) -> None:
        """How far groups stay the same: since the last time, and since the personalised stage began."""
        if not self.regroupings:
            self._first_groups = torch.from_numpy(before)
        self.regroupings.append(
            {
                "epoch": self.start_epoch,
                "temperature": self._temperature,
                "moved": int((groups != before).sum()),
                "rand_index": float(adjusted_rand_score(before, groups)),
                "rand_index_first": float(adjusted_rand_score(self._first_groups.numpy(), groups)),
            }
        )

    @property
    def learning_rates(self) -> LearningRateSettings:
        """As in `ContentTrainer`; the personalised stage may have a `learning_rate` of its own."""
        rates, of_groups = super().learning_rates, self.group_settings.group_learning_rate
        return replace(rates, learning_rate=of_groups) if of_groups and self.stage == "personalised" else rates

    def _build_optimizer(self, **kwargs):
        """As in `ContentTrainer`; where groups are independent, nothing else trains any more."""
        if self._is_independent:
            freeze_shared(self.model)
        return super()._build_optimizer(**kwargs)

    def extra_state(self) -> dict[str, Any]:
        """The stage to go on with, and when the global one ended."""
        return {**super().extra_state(), "stage": self.stage, "global_epochs": self.global_epochs}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Undoes `extra_state`."""
        super().load_extra_state(state)
        self.stage = state["stage"]
        self.global_epochs = state.get("global_epochs", self.group_settings.epochs_global)

    def _training_state(self, train_data) -> dict[str, Any]:
        return super()._training_state(train_data) | {
            "group_bests": self.group_bests.state(),
            "regroupings": self.regroupings,
            "first_groups": self._first_groups,
        }

    def _load_training_state(self, content: dict[str, Any], train_data, source: str | Path) -> None:
        super()._load_training_state(content, train_data, source)
        if "group_bests" in content:  # checkpoints of 0.1 have none
            with restored(source, "group_bests"):
                self.group_bests.load(content["group_bests"])
        self.regroupings = list(content.get("regroupings", ()))
        self._first_groups = content.get("first_groups", self._first_groups)
