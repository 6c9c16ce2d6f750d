"""Tiny models of timm with random weights, as folders of transformers and as timm writes them."""

import json
from pathlib import Path

import torch

CFG = {"input_size": [3, 32, 32], "crop_pct": 1.0, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}


def has_timm() -> bool:
    """Whether timm can be imported: it needs a torchvision that fits to the installed torch."""
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError):
        return False
    return True


def make_timm(folder: Path, architecture: str, seed: int = 0, **arguments) -> Path:
    """A folder as `save_pretrained` of transformers writes it, with what timm says of images."""
    from transformers import TimmWrapperConfig, TimmWrapperModel

    torch.manual_seed(seed)
    config = TimmWrapperConfig(architecture=architecture, model_args=arguments, pretrained_cfg=CFG)
    TimmWrapperModel(config).save_pretrained(folder)
    return folder


def make_timm_hub(folder: Path, architecture: str) -> Path:
    """A folder as timm itself writes it for the hub: no `model_type`, and names of tensors without a prefix."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=7)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    config = {"architecture": architecture, "num_classes": 7, "num_features": model.num_features}
    names = [f"class {number}" for number in range(7)]
    (folder / "config.json").write_text(json.dumps(config | {"pretrained_cfg": CFG, "label_names": names}))
    return folder
