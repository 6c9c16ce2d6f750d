"""Searchers, which choose points of a space, and schedulers, which stop trials early; by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.studies.search.space import SearchSpace

SCORE, EPOCH = "score", "epoch"


@dataclass(frozen=True)
class Sampling:
    """How trials get their points, as Ray Tune takes it.

    Attributes:
        param_space: space of Ray, with the one entry `point`.
        num_samples: how often Ray goes through it.
        search_alg: searcher of Ray; None if the space lists all points.
        n_trials: number of trials.
    """

    param_space: dict[str, Any]
    num_samples: int
    search_alg: Any
    n_trials: int


def check_names(searcher: str, scheduler: str, space: SearchSpace, rates: Collection[str]) -> None:
    """Refuse searchers and schedulers that do not exist, are not installed or do not suit the space.

    Args:
        searcher, scheduler: their names.
        space: the search space.
        rates: settings that may change while the model learns.

    Raises:
        PerPEFTError: the message says which and why.
    """
    if searcher not in SEARCHERS:
        raise PerPEFTError(f"there is no searcher {searcher!r}; choose one of {', '.join(SEARCHERS)}")
    if scheduler not in SCHEDULERS:
        raise PerPEFTError(f"there is no scheduler {scheduler!r}; choose one of {', '.join(SCHEDULERS)}")
    if searcher in _PACKAGES:
        if find_spec(_PACKAGES[searcher]) is None:
            raise PerPEFTError(f"--searcher={searcher} needs a package: pip install {_PACKAGES[searcher]}")
        if any(getattr(each.distribution, "exhaustive", False) for each in space.parameters):
            raise PerPEFTError(
                f"{searcher} chooses points itself: write choice in place of grid, or --searcher=random"
            )
    if scheduler == "pbt":
        if searcher in _PACKAGES:
            raise PerPEFTError(f"pbt changes the points that {searcher} has chosen: use --searcher=random with pbt")
        if not _changed_by_pbt(space, rates):
            raise PerPEFTError(
                "pbt changes settings while a model learns, and the space has none that may change then: "
                f"{', '.join(sorted(rates))}"
            )


def make_sampling(
    searcher: str, space: SearchSpace, defaults: Mapping[str, Any], num_samples: int, mode: str, seed: int
) -> Sampling:
    """The points of a search, or the searcher that will choose them.

    Args:
        searcher: `random`, `grid`, `optuna` or `hyperopt`.
        space: the search space.
        defaults: all settings where nothing is varied.
        num_samples: number of trials. The first of `random` leaves all settings as they are, which shows what the
            others gain. With parameters that are a grid it is the number for each combination of these.
        mode: `max` or `min`.
        seed: of what is drawn.

    Raises:
        PerPEFTError: the grid is infinite.
    """
    return SEARCHERS[searcher](space, defaults, num_samples, mode, seed)


def _listed(points: list[dict[str, Any]]) -> Sampling:
    from ray import tune

    return Sampling({"point": tune.grid_search(points)}, 1, None, len(points))


def _random(space: SearchSpace, defaults: Mapping[str, Any], num_samples: int, mode: str, seed: int) -> Sampling:
    if any(getattr(each.distribution, "exhaustive", False) for each in space.parameters):
        return _listed(space.draw(num_samples, defaults, seed))
    first = space.point_of(defaults)
    return _listed([first, *space.draw(num_samples - 1, defaults, seed, [first])])


def _grid(space: SearchSpace, defaults: Mapping[str, Any], num_samples: int, mode: str, seed: int) -> Sampling:
    return _listed(space.grid(defaults))


def _optuna(space: SearchSpace, defaults: Mapping[str, Any], num_samples: int, mode: str, seed: int) -> Sampling:
    from optuna.samplers import TPESampler
    from ray.tune.search.optuna import OptunaSearch

    searcher = OptunaSearch(metric=SCORE, mode=mode, sampler=TPESampler(seed=seed))
    return _with_searcher(space, searcher, num_samples)


def _hyperopt(space: SearchSpace, defaults: Mapping[str, Any], num_samples: int, mode: str, seed: int) -> Sampling:
    from ray.tune.search.hyperopt import HyperOptSearch

    searcher = HyperOptSearch(metric=SCORE, mode=mode, random_state_seed=seed)
    return _with_searcher(space, searcher, num_samples)


def _with_searcher(space: SearchSpace, searcher: Any, num_samples: int) -> Sampling:
    point = {each.key: each.distribution.for_ray() for each in space.parameters}
    return Sampling({"point": point}, num_samples, searcher, num_samples)


def make_scheduler(
    name: str,
    space: SearchSpace,
    rates: Collection[str],
    mode: str,
    max_epochs: int,
    grace_epochs: int,
    reduction_factor: float,
) -> Any:
    """A scheduler of Ray Tune.

    Args:
        name: `asha` (Li et al., MLSys 2020), `median` (Golovin et al., KDD 2017), `pbt` (Jaderberg et al., 2017:
            trials go on from the state of better ones with changed settings) or `none`.
        space: the search space.
        rates: settings that may change while the model learns.
        mode: `max` or `min`.
        max_epochs: largest number of epochs of a trial.
        grace_epochs: epochs before which no trial is stopped; for `pbt` epochs between two changes.
        reduction_factor: ASHA keeps one trial of so many at each rung.
    """
    return SCHEDULERS[name](space, rates, mode, max_epochs, grace_epochs, reduction_factor)


def _no_scheduler(space, rates, mode, max_epochs, grace_epochs, reduction_factor) -> Any:
    from ray.tune.schedulers import FIFOScheduler

    return FIFOScheduler()


def _asha(space, rates, mode, max_epochs, grace_epochs, reduction_factor) -> Any:
    from ray.tune.schedulers import ASHAScheduler

    # No rung at the last epoch: there is nothing left to stop.
    last = max(1, max_epochs - 1)
    return ASHAScheduler(
        time_attr=EPOCH,
        metric=SCORE,
        mode=mode,
        max_t=last,
        stop_last_trials=False,
        grace_period=min(grace_epochs, last),
        reduction_factor=reduction_factor,
    )


def _median(space, rates, mode, max_epochs, grace_epochs, reduction_factor) -> Any:
    from ray.tune.schedulers import MedianStoppingRule

    return MedianStoppingRule(
        time_attr=EPOCH, metric=SCORE, mode=mode, grace_period=grace_epochs, min_samples_required=3, hard_stop=True
    )


def _pbt(space, rates, mode, max_epochs, grace_epochs, reduction_factor) -> Any:
    from recbole_perpeft.studies.search.population import EndingPopulation

    changed = {"point": {key: each.for_ray() for key, each in _changed_by_pbt(space, rates).items()}}
    return EndingPopulation(
        max_epochs,
        time_attr=EPOCH,
        metric=SCORE,
        mode=mode,
        perturbation_interval=grace_epochs,
        hyperparam_mutations=changed,
        custom_explore_fn=partial(_within_bounds, space, rates),
    )


def _changed_by_pbt(space: SearchSpace, rates: Collection[str]) -> dict[str, Any]:
    return {each.key: each.distribution for each in space.parameters if each.key in rates and not each.when}


def _within_bounds(space: SearchSpace, rates: Collection[str], config: dict[str, Any]) -> dict[str, Any]:
    """PBT multiplies by 0.8 or 1.2, whatever the bounds."""
    by_key = {each.key: each.distribution for each in space.parameters}
    changed = _changed_by_pbt(space, rates)
    point = {key: by_key[key].clip(value) if key in changed else value for key, value in config["point"].items()}
    return config | {"point": point}


_PACKAGES = {"optuna": "optuna", "hyperopt": "hyperopt"}
SEARCHERS: Mapping[str, Callable[..., Sampling]] = {
    "random": _random,
    "grid": _grid,
    "optuna": _optuna,
    "hyperopt": _hyperopt,
}
SCHEDULERS: Mapping[str, Callable[..., Any]] = {
    "asha": _asha,
    "median": _median,
    "pbt": _pbt,
    "none": _no_scheduler,
}
