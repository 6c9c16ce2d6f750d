"""One folder, two processes: the second is refused, and told who the first is."""

import os
import threading
from contextlib import contextmanager

import pytest
from filelock import FileLock

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.runs.run import resume, run
from recbole_perpeft.studies.compare import compare
from recbole_perpeft.studies.search.session import _Search
from recbole_perpeft.training.trainer import RunTrainer


@pytest.fixture
def refused(monkeypatch):
    """What `second()` is told while a run trains: a function of what the first is and what the second is."""

    def told(first, second):
        errors = []
        fit = RunTrainer.fit

        def meet(trainer, *arguments, **options):
            monkeypatch.setattr(RunTrainer, "fit", fit)
            thread = threading.Thread(target=in_thread)
            thread.start()
            thread.join()
            return fit(trainer, *arguments, **options)

        def in_thread():
            with pytest.raises(PerPEFTError) as error:
                second()
            errors.append(str(error.value))

        monkeypatch.setattr(RunTrainer, "fit", meet)
        first()
        return errors[0]

    return told


@pytest.fixture
def held():
    """Holds a lock for the time of a block, as another process does."""

    @contextmanager
    def hold(file):
        lock = FileLock(file, thread_local=False)
        thread = threading.Thread(target=lock.acquire)
        thread.start()
        thread.join()
        file.write_text(f"{os.getpid()}")
        yield
        lock.release()

    return hold


def test_a_run_folder_is_written_by_one_process(toy_settings, tmp_path, refused, held):
    folder = tmp_path / "run"
    settings = toy_settings | {"run_folder": str(folder), "epochs": 1}
    message = f"{folder} is being written by process {os.getpid()}; wait for it"
    assert refused(lambda: run("Pop", config_dict=settings), lambda: resume(folder)) == message
    assert refused(lambda: resume(folder, {"epochs": 2}), lambda: resume(folder)) == message
    (folder / "config.yaml").unlink()
    for path in folder.iterdir():  # as a run that was killed before it had written its settings
        if path.is_file() and path.name != "run.log":
            path.unlink()
    (folder / "tensorboard").rename(tmp_path / "tensorboard")
    with held(folder / "run.lock"), pytest.raises(PerPEFTError, match="is being written"):
        run("Pop", config_dict=settings)
    run("Pop", config_dict=settings)
    assert not (folder / "run.lock").exists()


def test_a_report_is_written_by_one_process(toy_settings, tmp_path, held):
    settings = {key: str(value) for key, value in toy_settings.items() if key != "dataset"}
    with held(tmp_path / "report.lock"), pytest.raises(PerPEFTError, match=f"report is being .* {os.getpid()}; wait"):
        compare("Pop", "toy", tmp_path / "report", 1, config_dict=settings)


def test_a_search_is_written_by_one_process(tmp_path, held):
    search = object.__new__(_Search)
    with held(tmp_path / "search.lock"), pytest.raises(PerPEFTError, match=f"{tmp_path} is being written by"):
        search.carry_out(tmp_path)
