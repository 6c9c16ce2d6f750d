"""How to search: what `--help` lists."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.settings import Settings, setting


@dataclass(frozen=True)
class SearchSettings(Settings):
    """How to search."""

    num_samples: int = setting(16, "trials; the first has the settings as they are, a grid has its points", least=1)
    searcher: str = setting("random", "random | grid | optuna | hyperopt")
    scheduler: str = setting("asha", "asha | median | pbt | none: which trials are stopped early")
    devices_per_trial: int = setting(1, "processes that train a trial together; each has what follows", least=1)
    cpus: float = setting(1.0, "processors a trial, also parts of one", least=0)
    gpus: float | None = setting(None, "GPUs a trial, also parts of one; ~ for one if there are any", least=0)
    max_concurrent: int = setting(0, "largest number of trials at a time; 0 for as many as fit", least=0)
    time_budget: float = setting(0.0, "seconds after which the search ends; 0 for no limit", least=0)
    grace_period: int = setting(0, "epochs before which no trial is stopped; 0 for a tenth of the epochs", least=0)
    reduction_factor: float = setting(3.0, "asha keeps one of so many trials at each rung", above=1)
    max_failures: int = setting(2, "how often a trial is tried again from its last epoch", least=0)
    address: str | None = setting(
        None, "of a Ray cluster: auto, host:port or ray://host:port; ~ starts Ray on this machine"
    )
    ship_data: bool = setting(False, "send the data set through Ray, where machines share no folder with it")
    output: Path | None = setting(
        None, "folder of the search; ~ for a new one below searches. A cluster needs one that all machines see"
    )

    def check(self) -> None:
        """What several devices a trial need."""
        if self.devices_per_trial == 1:
            return
        if self.cpus == 0:
            raise PerPEFTError("cpus is 0: with devices_per_trial each process needs a processor, or a part of one")
        if self.ship_data:
            raise PerPEFTError(
                "ship_data sends the data to the machine of a trial, and with devices_per_trial it may have several: "
                "leave out one of the two"
            )
        if self.gpus not in (None, 0, 1):
            raise PerPEFTError(
                f"gpus is {self.gpus:g}: with devices_per_trial each process has one GPU to itself, or none (gpus=0)"
            )


SEARCH_KEYS = frozenset(each.name for each in dataclasses.fields(SearchSettings))
