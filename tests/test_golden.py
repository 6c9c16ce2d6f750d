"""What a run of every kind gave when these numbers were recorded: a change of the structure changes none of them.

`pytest tests/test_golden.py --record-golden` writes `tests/golden/*.json` anew; a reviewer then sees what changed.
"""

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from zlib import crc32

import pytest
import torch

from recbole_perpeft.cli.train import help_text
from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.run import get_trainer, load, run
from recbole_perpeft.training.checkpoint import load_checkpoint
from support.versions import as_recorded

FOLDER = Path(__file__).parent / "golden"
MODELS = ("GlobalPEFT", "IISAN", "MoRec", "PerPEFT", "SASRec", "VIP5")
CASES = {
    "PerPEFT": {"model": "PerPEFT"},
    "PerPEFT-last-block": {"model": "PerPEFT", "peft_config": {"layers_to_transform": [1]}, "regroup_every": 1},
    "PerPEFT-iisan": {"model": "PerPEFT", "peft_type": "iisan", "peft_config": {"n_blocks": 2}},
    "GlobalPEFT": {"model": "GlobalPEFT"},
    "GlobalPEFT-none": {"model": "GlobalPEFT", "peft_type": "none"},
    "IISAN": {"model": "IISAN"},
    "MoRec-frozen": {"model": "MoRec", "adaptation": "frozen"},
    "MoRec-lora": {"model": "MoRec", "adaptation": "lora"},
    "MoRec-adapter": {"model": "MoRec", "adaptation": "adapter"},
    "VIP5": {"model": "VIP5"},
    "SASRec": {"model": "SASRec"},
}
PLACES = ("data_path", "cache_folder", "runs_folder", "checkpoint_dir", "run_folder")


def same_machine(recorded):
    """Kernels of another processor or torch round differently; the last digit is then not ours to promise."""
    return recorded["torch"] == torch.__version__ and recorded["cpu"] == torch.backends.cpu.get_cpu_capability()


def compare_or_record(name, found, request):
    file = FOLDER / f"{name}.json"
    if request.config.getoption("--record-golden"):
        FOLDER.mkdir(exist_ok=True)
        machine = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
        file.write_text(json.dumps(machine | found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    recorded = json.loads(file.read_text(encoding="utf-8"))
    found = json.loads(json.dumps(found))
    for key in found:
        if key == "metrics" and not same_machine(recorded):
            assert found[key] == pytest.approx(recorded[key], abs=0.02)
        elif key == "cache" and not same_machine(recorded):
            assert found[key].keys() == recorded[key].keys()
        else:
            assert found[key] == recorded[key], key


def metrics_of(result):
    parts = {"valid": result["best_valid_result"], "test": result["test_result"]}
    return {f"{part} {name}": value for part, values in parts.items() for name, value in values.items()}


def state_keys(state):
    """Names and shapes; what differs in numbers alone, such as layers and groups, is one entry with its count."""
    kinds = Counter(
        re.sub(r"\d+", "*", name) + f" {list(getattr(value, 'shape', ()))}" for name, value in state.items()
    )
    return {"names": dict(kinds), "digest": crc32("\n".join(sorted(state)).encode())}


def cache_content(folder):
    """Names of files, which hold the digests of content, processor and weights, and checksums of arrays."""
    files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file() and path.suffix != ".lock"]
    files = [path for path in files if path.name != "encoder-hashes.json"]  # remembers places of this machine
    return {path.relative_to(folder).as_posix(): checksum(path) for path in files}


def checksum(path):
    """None for files that hold the time at which photos were last changed."""
    return crc32(path.read_bytes()) if path.suffix == ".npy" and "stamp" not in path.name else None


@as_recorded
@pytest.mark.parametrize("name", CASES)
def test_one_epoch_gives_the_recorded_numbers_names_and_files(name, aspects_settings, tmp_path, request):
    settings = aspects_settings | {
        "epochs_global": 1,
        "epochs": 1,
        "train_windows": "newest",
        "cache_folder": str(tmp_path / "cache"),
        "run_folder": str(tmp_path / "run"),
        "metric_decimal_place": 10,
    }
    result = run(config_dict=settings | CASES[name])
    checkpoint = load_checkpoint(tmp_path / "run" / "best.pth")
    found = {
        "metrics": metrics_of(result),
        "parameters": [result["parameters"], result["trainable_parameters"]],
        "checkpoint": sorted(checkpoint),
        "state_dict": state_keys(checkpoint["state_dict"]),
        "run_folder": sorted(path.name for path in (tmp_path / "run").iterdir()),
        "cache": cache_content(tmp_path / "cache"),
    }
    compare_or_record(name, found, request)


@pytest.mark.parametrize("model", MODELS)
def test_defaults_and_help_name_the_recorded_settings(model, request):
    config = Config(model, "aspects")
    found = {
        "settings": {key: value for key, value in sorted(config.to_dict().items()) if key not in PLACES},
        "help": sorted(set(re.findall(r"^(\w+):", help_text(model), re.MULTILINE))),
    }
    compare_or_record(f"settings-{model}", found, request)


@as_recorded
@pytest.mark.parametrize("model", ("PerPEFT", "IISAN"))
def test_a_run_and_its_caches_from_version_0_1_0_are_used_as_they_are(model, tiny_aspects, tmp_path):
    shutil.copytree(FOLDER / "version-0.1.0", tmp_path / "old")
    cache = tmp_path / "old" / "cache"
    before = cache_content(cache)
    places = {"data_path": str(tiny_aspects.parent), "cache_folder": str(cache)}
    config, trained, _, _, _, test_data = load(tmp_path / "old" / model, places)
    trainer = get_trainer(config)(config, trained)
    found = trainer.evaluate(test_data, load_best_model=False, show_progress=False)
    recorded = json.loads((tmp_path / "old" / model / "result.json").read_text(encoding="utf-8"))
    assert {name: float(value) for name, value in found.items()} == pytest.approx(recorded["test_result"], abs=0.02)
    assert cache_content(cache) == before
