"""What a cluster that Ray has joined or started can do: processors, places, machines that see the same folders."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_perpeft.core.errors import PerPEFTError

if TYPE_CHECKING:
    from recbole_perpeft.runs.config import Config

_MOST_MARKED = 16 * 2**20


def settings_anywhere(config: Config) -> dict[str, Any]:
    """Settings of a run as plain types that mean the same in any folder."""
    settings = absolute_paths(config.to_dict(), "data_path", "cache_folder", "runs_folder")
    return settings | {"model": config["model"], "dataset": config["dataset"]}


def absolute_paths(settings: Mapping[str, Any], *folders: str) -> dict[str, Any]:
    """Settings whose paths mean the same in any folder; workers may start in another than this program.

    Args:
        settings: of a run.
        folders: keys of folders, which need not be there yet.
    """
    found = {key: _absolute(value) for key, value in settings.items()}
    return found | {key: str(Path(settings[key]).absolute()) for key in folders}


def _absolute(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _absolute(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_absolute(entry) for entry in value]
    # A name such as `aspects` may be a folder here too; what has a slash is meant as a path if it exists, and so is
    # the folder of an encoder or of a run.
    if isinstance(value, str) and ("/" in value and Path(value).exists() or _holds_a_model(Path(value))):
        return str(Path(value).absolute())
    return value


def _holds_a_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / "best.pth").is_file()


def check_resources(cpus: float, gpus: float, what: str, n: int = 1) -> None:
    """Refuse what the machines cannot run at once: Ray would wait for more of them.

    Args:
        cpus: that one needs.
        gpus: that one needs.
        what: one, in words.
        n: how many.

    Raises:
        PerPEFTError: the machines are too small or too few.
    """
    nodes = [node["Resources"] for node in _nodes()]
    if _places(nodes, cpus, gpus, n) >= n:
        return
    sizes = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
    lack = "no machine has that" if n == 1 else f"the machines have no place for {n}"
    raise PerPEFTError(f"{what} needs {cpus:g} CPUs and {gpus:g} GPUs, and {lack}: there are {sizes}")


def _places(nodes: Sequence[Mapping[str, float]], cpus: float, gpus: float, n: int) -> float:
    """How many with such needs fit on machines; `n` for each machine where they need nothing."""
    needs = {"CPU": cpus, "GPU": gpus}
    return sum(min((node.get(key, 0) // need for key, need in needs.items() if need), default=n) for node in nodes)


def n_places(cpus: float, gpus: float) -> int:
    """How many workers with such needs the machines have a place for at once.

    Args:
        cpus: that each needs, above 0.
        gpus: that each needs.
    """
    return int(_places([node["Resources"] for node in _nodes()], cpus, gpus, 0))


def most_cpus(n: int, gpus: float) -> int:
    """The most processors that each of `n` workers can have at once; 1 where not even that has a place.

    Args:
        n: how many.
        gpus: that each needs.
    """
    nodes = [node["Resources"] for node in _nodes()]
    most = int(sum(node.get("CPU", 0) for node in nodes)) // n
    return next((cpus for cpus in range(most, 1, -1) if _places(nodes, cpus, gpus, n) >= n), 1)


def mark_of(run_folder: Path) -> int:
    """Bytes of memory that each process of a training asks Ray for: few, and by them its places are known again."""
    return 1 + zlib.crc32(str(run_folder).encode()) % _MOST_MARKED


def free_places(run_folder: Path) -> None:
    """Give back the places of a training that has ended however it ended.

    Ray keeps a group of places while the program runs that its creator belongs to. Ray Train watches over
    creators, but asks the dashboard whether they live, and for ever where there is none.

    Args:
        run_folder: of the training.
    """
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    mark = mark_of(run_folder)
    for name, group in placement_group_table().items():
        marks = {bundle.get("memory") for bundle in group["bundles"].values()}
        if mark in marks and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(name))))


def n_machines() -> int:
    """Machines of the cluster that have processors to work with."""
    return sum(node["Resources"].get("CPU", 0) >= 1 for node in _nodes())


def n_gpus() -> float:
    """GPUs of the cluster."""
    import ray

    return ray.cluster_resources().get("GPU", 0)


def check_machines(paths: Mapping[str, Path], to_do: str, otherwise: str = "") -> None:
    """Refuse a cluster with machines that lack this package, or do not see a path.

    Args:
        paths: by what they are for.
        to_do: what they shall do, in words.
        otherwise: what helps beside a shared folder for all but the output.

    Raises:
        PerPEFTError: a machine cannot do it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=1)(_missing)
    for node in _nodes():
        machine = f"the machine {node['NodeManagerHostname']} of the cluster"
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        try:
            missing = ray.get(task.options(scheduling_strategy=there).remote([str(path) for path in paths.values()]))
        except ray.exceptions.RayError as error:
            reason = next((line for line in str(error).splitlines() if "No module named" in line), str(error))
            what = f"install this package there ({reason.strip()})"
            raise PerPEFTError(f"{machine} cannot {to_do}: {what}") from error
        for name, path in paths.items():
            if str(path) in missing:
                raise PerPEFTError(
                    f"{machine} does not see {path} ({name}): put it into a folder that all machines share"
                    + (f", or {otherwise}" if otherwise and name != "output" else "")
                )


def _missing(paths: Sequence[str]) -> list[str]:
    """Runs on a machine of the cluster."""
    return [path for path in paths if not os.path.exists(path)]


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]
