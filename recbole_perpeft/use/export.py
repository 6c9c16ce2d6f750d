"""A trained model as a folder that needs none of this package: adapters of peft, vectors, user encoder, groups."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.whole import alone, clear, disk_errors, draft_of, put_in_place, remove
from recbole_perpeft.data.history import union_of
from recbole_perpeft.nn.adapt.bank import AdapterBank
from recbole_perpeft.runs.run import load
from recbole_perpeft.use.card import Trained, name_of_base, write_card
from recbole_perpeft.use.parts import can_write_onnx, check_onnx, names_of_groups, write_items, write_user_encoder


def export(
    run: str | Path,
    output: str | Path,
    onnx: bool | None = None,
    licence: str = "unknown",
    data_path: str | None = None,
) -> Path:
    """Writes what is left of a model once this package is taken away; the folder appears whole or not at all.

    | in the folder | content |
    |---|---|
    | `README.md` | the model card, with lines that load each part |
    | `global/`, `group-0/` ... | one adapter each: `PeftModel.from_pretrained(foundation_model, folder)` opens it |
    | `global/text/` ... | the same for each tower, of a model with towers |
    | `items.parquet` | `row`, `item_id`; row 0 of what follows is the pad |
    | `vectors/global.safetensors` ... | `item_vectors` of everybody and of each group |
    | `projectors.safetensors`, `id_vectors.safetensors` | what item vectors are made of, beside content vectors |
    | `user_encoder.pt2`, `user_encoder.onnx` | user vectors of item vectors, for PyTorch and for ONNX |
    | `users.parquet` | `user_id` (token), `group`, of `group_mixing` also `weights`; of a model with groups |
    | `groups.parquet` | `group`, `n_users`, `centroid`: mean of its users' vectors by the global module; the same |

    Args:
        run: A run folder, or a checkpoint in it.
        output: The folder to make.
        onnx: Whether the user encoder is written as ONNX too; by default if the packages for it are there.
        licence: What the card says of it.
        data_path: Folder of the data set's folder, where it has moved.

    Returns:
        The folder.

    Raises:
        PerPEFTError: The folder exists, the disk does not take it, the model has no adapters of peft, or the packages
            for ONNX are missing.
    """
    output = Path(output).absolute()
    if output.exists():
        raise PerPEFTError(f"{output} exists already: delete it or choose another folder")
    if onnx:
        check_onnx()
    config, model, dataset, *loaders = load(run, {"data_path": data_path} if data_path else None)
    banks = _banks(model)
    if not banks:
        raise PerPEFTError(
            f"{run} is a run of {config['model']} with peft_type {config['peft_type']}, which has no adapters of "
            "peft; PerPEFT and GlobalPEFT have, with every peft_type but adapter, bitfit, full, ids, iisan and none"
        )
    has_onnx = can_write_onnx() if onnx is None else onnx
    folder = Path(run) if Path(run).is_dir() else Path(run).parent
    n_interactions = len(union_of([loader._dataset for loader in loaders]).items)
    draft = draft_of(output)
    with alone(output, patience=0), disk_errors(output):
        try:
            clear(draft)
            for name, group in names_of_groups(model):
                for place, bank in banks.items():
                    _hide_path(bank.export(draft, f"{name}{place}", group) / "adapter_config.json")
            write_items(draft, model, dataset)
            write_user_encoder(draft, model, has_onnx)
            if model.n_groups:
                _write_groups(draft, model, dataset)
            write_card(draft, Trained(folder, config, model, n_interactions, banks, has_onnx, licence))
            put_in_place(draft, output)
        finally:
            remove(draft)
    return output


def _hide_path(file: Path) -> None:
    """Leaves of the place of the foundation model on this machine its name alone."""
    settings = json.loads(file.read_bytes())
    base = settings.get("base_model_name_or_path")
    if base:
        settings["base_model_name_or_path"] = name_of_base(base)
        file.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def _banks(model: Any) -> dict[str, AdapterBank]:
    """What holds adapters of peft, by the place of each tower's in a group's folder; of a dual encoder, one."""
    encoder = getattr(getattr(model, "item_encoder", None), "content_encoder", None)
    towers = {f"/{role}": tower for role, tower in getattr(encoder, "towers", {}).items()} or {"": encoder}
    banks = {place: getattr(tower, "bank", None) for place, tower in towers.items()}
    return {place: bank for place, bank in banks.items() if isinstance(bank, AdapterBank) and bank.is_of_peft}


def _write_groups(folder: Path, model, dataset) -> None:
    users = (model.user_group >= 0).nonzero().flatten().cpu()
    group = model.user_group.cpu()[users]
    tokens = dataset.id2token(dataset.uid_field, users.numpy())
    columns = {"user_id": tokens, "group": group.numpy()}
    if model.mixes_groups:
        columns["weights"] = list(model.group_weights[users].cpu().numpy())
    pd.DataFrame(columns).to_parquet(folder / "users.parquet", index=False)
    table = {
        "group": range(model.n_groups),
        "n_users": torch.bincount(group, minlength=model.n_groups).numpy(),
        "centroid": list(model.group_centroids.cpu().numpy()),
    }
    pd.DataFrame(table).to_parquet(folder / "groups.parquet", index=False)
