import runpy
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "results_table.py"


def test_table_of_two_variants_and_two_seeds(aspects_settings, tmp_path, monkeypatch):
    settings = [f"--{key}={value}" for key, value in aspects_settings.items() if key not in ("show_progress", "topk")]
    settings += ["--epochs=1", "--epochs_global=1", "--min_group_size=1", "--topk=[10,20]"]
    flags = [f"--output={tmp_path}", "--seeds=2", "--only=GlobalPEFT;PerPEFT", *settings]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *dict.fromkeys(flags)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| GlobalPEFT", "| PerPEFT"]
    assert "±" in lines[3]
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 5
