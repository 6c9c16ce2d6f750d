"""What a search has found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_perpeft.core.yaml_values import read_yaml


@dataclass(frozen=True)
class SearchReport:
    """The outcome of a search.

    Attributes:
        folder: where everything lies.
        valid_metric: name of the score.
        table: a row a trial: `trial`, `status`, `score` (best of the stage that chooses the model), `best_epoch`,
            `trained_epochs`, `seconds`, `starts`, `machines`, `error`, and a column a parameter; best trials first.
        parameters: the columns that are parameters.
        logarithmic: those whose logarithm is searched over.
        best: result of the best trial, as in `result.json`; None if no trial has a model yet.
        unchanged: the trial with the settings as they are, which a random search begins with; None without one.
        n_trials: number of trials of the whole search; fewer have rows if it was stopped.
        max_epochs: epochs that these would take at most.
    """

    folder: Path
    valid_metric: str
    table: pd.DataFrame
    parameters: tuple[str, ...]
    logarithmic: frozenset[str]
    best: dict[str, Any] | None
    unchanged: str | None
    n_trials: int
    max_epochs: int

    @property
    def n_epochs(self) -> int:
        """Trained epochs of all trials."""
        return int(self.table["trained_epochs"].sum())

    @property
    def best_settings(self) -> dict[str, Any]:
        """`best.yaml`: settings that train the best trial, for `run(config_dict=...)`; empty if there is none."""
        return read_yaml(self.folder / "best.yaml") if self.best else {}

    @property
    def unchanged_score(self) -> float | None:
        """Score of the trial with the settings as they are; None without one."""
        scores = self.table.loc[self.table["trial"] == self.unchanged, "score"].dropna()
        return None if scores.empty else float(scores.item())
