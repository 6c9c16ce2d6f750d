"""Small files in the formats of the sources."""

import csv
import io

import numpy as np
import pytest
from PIL import Image

from recbole_perpeft.convert.conversion import ConversionSettings, convert
from recbole_perpeft.convert.filters import FilterSettings


def jpeg(side=20, seed=0, kind="JPEG"):
    """Bytes of a small random image."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_csv(path, header, rows, delimiter=","):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


@pytest.fixture
def make_image():
    return jpeg


@pytest.fixture
def make_csv():
    return write_csv


@pytest.fixture
def run(tmp_path):
    """Convert a source into `<tmp_path>/out/<name>` without bars; filters and settings by name."""

    def run(source, name="set", **settings):
        filters = {key: settings.pop(key) for key in ("repeats", "k_core", "min_len", "keep_last") if key in settings}
        chosen = ConversionSettings(FilterSettings(**filters), show_progress=False, **settings)
        folder = tmp_path / "out" / name
        return folder, convert(source, folder, chosen)

    return run


def read_cells(path):
    """Cells of an atomic file below its header, read as nothing but lines and tabs."""
    _, *lines = path.read_bytes().decode().split("\n")
    assert lines.pop() == ""
    return [line.split("\t") for line in lines]


@pytest.fixture
def cells():
    return read_cells


def all_files(folder):
    """Content of every file below a folder, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def files_below():
    return all_files
