"""Several processes that train together, without Ray: forks of the test's own, which have its data already."""

import multiprocessing
import traceback
import warnings
from datetime import timedelta

import pytest
import torch
from torch import distributed

from recbole_perpeft.training.workers import Team


def _work(function, folder, rank, size):
    try:
        torch.set_num_threads(1)
        store = distributed.FileStore(str(folder / "store"), size)
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60))
        torch.save(function(Team()), folder / f"{rank}.pt")
        distributed.destroy_process_group()
    except BaseException:
        (folder / f"{rank}.txt").write_text(traceback.format_exc())
        raise


@pytest.fixture
def in_processes(tmp_path_factory):
    """Calls a function of `Workers` in some processes; what each returns, in their order."""

    def call(size, function):
        folder = tmp_path_factory.mktemp("workers")
        fork = multiprocessing.get_context("fork")
        processes = [fork.Process(target=_work, args=(function, folder, rank, size)) for rank in range(size)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, which are idle here
            for process in processes:
                process.start()
        for process in processes:
            process.join(120)
        failed = [path.read_text() for path in sorted(folder.glob("*.txt"))]
        assert not failed, "\n".join(failed)
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]

    return call
