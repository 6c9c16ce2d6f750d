"""A trained model's adapters as folders of the peft library, with the groups of its users."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.whole import alone, clear, disk_errors, draft_of, put_in_place, remove
from recbole_perpeft.runs.run import load


def export(run: str | Path, output: str | Path) -> Path:
    """Writes what is left of a model once this package is taken away; the folder appears whole or not at all.

    | in the folder | content |
    |---|---|
    | `global/`, `group-0/` ... | one adapter each: `PeftModel.from_pretrained(foundation_model, folder)` opens it |
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
    try:
        write_adapter = model.item_encoder.content_encoder.bank.export
    except AttributeError:
        raise PerPEFTError(
            f"{run} is a run of {config['model']} with peft_type {config['peft_type']}, which has no adapters of "
            "peft; PerPEFT and GlobalPEFT have, with every peft_type but none and iisan"
        ) from None
    draft = draft_of(output)
    with alone(output, patience=0), disk_errors(output):
        try:
            clear(draft)
            write_adapter(draft, "global", None)
            for group in range(model.n_groups):
                write_adapter(draft, f"group-{group}", group)
            if model.n_groups:
                _write_groups(draft, model, dataset)
            put_in_place(draft, output)
        finally:
            remove(draft)
    return output


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
