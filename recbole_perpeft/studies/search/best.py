"""Test metrics of the trial that was chosen."""

from __future__ import annotations

from pathlib import Path

from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.folder import RunFolder
from recbole_perpeft.runs.run import get_trainer, load


def metrics_on_test(run_folder: Path, config: Config) -> dict[str, float]:
    """Evaluate the best model of a run on the test items, and write its `test_ranks.parquet`.

    Args:
        run_folder: the folder of the run.
        config: tells where the data are on this machine.

    Raises:
        PerPEFTError: the run has no model, or it does not fit the data.
    """
    here = {"data_path": str(config.dataset_folder.parent), "cache_folder": config["cache_folder"]}
    loaded, model, dataset, train_data, _, test_data = load(run_folder, here)
    loaded["checkpoint_dir"] = str(run_folder)
    trainer = get_trainer(loaded)(loaded, model)
    trainer.eval_collector.data_collect(train_data)
    metrics = trainer.evaluate(test_data, load_best_model=False)
    trainer.tensorboard.close()
    if trainer.target_ranks is not None:
        RunFolder(run_folder).write_test_ranks(dataset, trainer.target_ranks, getattr(model, "user_group", None))
    return {name: float(value) for name, value in metrics.items()}
