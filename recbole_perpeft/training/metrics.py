"""Metrics of users' own in RecBole's evaluator."""

from recbole.evaluator import register
from recbole.evaluator.base_metric import AbstractMetric

from recbole_perpeft.core.errors import PerPEFTError

__all__ = ["register_metric"]


def register_metric(metric: type[AbstractMetric]) -> type[AbstractMetric]:
    """A decorator that makes a metric known to RecBole by its name in small letters, for `metrics` and `valid_metric`.

    Args:
        metric: A class as RecBole's own: `metric_need` (what it is computed from, such as `rec.items`),
            `metric_type`, `smaller`, and `calculate_metric(dataobject)`, which returns values by name.

    Raises:
        PerPEFTError: Another metric has the name, or the class lacks a part.
    """
    name = metric.__name__.lower()
    if not all(hasattr(metric, part) for part in ("metric_need", "metric_type", "smaller")):
        raise PerPEFTError(f"metric {metric.__name__}: name metric_need, metric_type and smaller in its class")
    taken = register.metrics_dict.get(name, metric)
    if (taken.__module__, taken.__qualname__) != (metric.__module__, metric.__qualname__):
        raise PerPEFTError(f"metric {metric.__name__}: {name!r} is taken; give the class another name")
    register.metrics_dict[name] = metric
    register.metric_information[name] = metric.metric_need
    register.metric_types[name] = metric.metric_type
    if metric.smaller and name not in register.smaller_metrics:
        register.smaller_metrics.append(name)
    return metric
