"""A trained model's adapters as folders of the peft library, with the groups of its users."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.whole import alone, clear, disk_errors, draft_of, put_in_place, remove
from recbole_perpeft.nn.adapt.bank import AdapterBank
from recbole_perpeft.runs.run import load


def export(run: str | Path, output: str | Path) -> Path:
    """Writes what is left of a model once this package is taken away; the folder appears whole or not at all.

    | in the folder | content |
    |---|---|
    | `global/`, `group-0/` ... | one adapter each: `PeftModel.from_pretrained(foundation_model, folder)` opens it |
    | `global/text/` ... | the same for each tower, of a model with towers |
    | `users.parquet` | `user_id` (token), `group`; of a model with groups |
    | `groups.parquet` | `group`, `n_users`, `centroid`: mean of its users' vectors by the global module; the same |

    Args:
        run: A run folder, or a checkpoint in it.
        output: The folder to make.

    Returns:
        The folder.

    Raises:
        PerPEFTError: The folder exists, the disk does not take it, or the model has no adapters of peft.
    """
    output = Path(output).absolute()
    if output.exists():
        raise PerPEFTError(f"{output} exists already: delete it or choose another folder")
    config, model, dataset, *_ = load(run)
    banks = _banks(model)
    if not banks:
        raise PerPEFTError(
            f"{run} is a run of {config['model']} with peft_type {config['peft_type']}, which has no adapters of "
            "peft; PerPEFT and GlobalPEFT have, with every peft_type but adapter, bitfit, full, iisan and none"
        )
    draft = draft_of(output)
    with alone(output, patience=0), disk_errors(output):
        try:
            clear(draft)
            for place, bank in banks.items():
                bank.export(draft, f"global{place}", None)
                for group in range(model.n_groups):
                    bank.export(draft, f"group-{group}{place}", group)
            if model.n_groups:
                _write_groups(draft, model, dataset)
            put_in_place(draft, output)
        finally:
            remove(draft)
    return output


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
    pd.DataFrame({"user_id": tokens, "group": group.numpy()}).to_parquet(folder / "users.parquet", index=False)
    table = {
        "group": range(model.n_groups),
        "n_users": torch.bincount(group, minlength=model.n_groups).numpy(),
        "centroid": list(model.group_centroids.cpu().numpy()),
    }
    pd.DataFrame(table).to_parquet(folder / "groups.parquet", index=False)
