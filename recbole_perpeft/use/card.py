"""The model card of an export: what was trained on what, how good it is, and how each part is loaded without us."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
import yaml

from recbole_perpeft.core.protocol import protocol_line
from recbole_perpeft.core.run_settings import RunSettings
from recbole_perpeft.core.settings import keys_of_kind, settings_from
from recbole_perpeft.models.perpeft.content import ItemEncoderSettings
from recbole_perpeft.models.towers import Tower
from recbole_perpeft.nn.adapt.bank import AdapterBank
from recbole_perpeft.runs.folder import ENVIRONMENT_FILE
from recbole_perpeft.runs.record import RunRecord, read_json

_TRAINING = ("learning_rate", "weight_decay", "train_batch_size", "epochs", "stopping_step", "seed")
_ABSOLUTE = re.compile(r'"(/|~|[A-Za-z]:)')  # the beginning of a path of this machine among JSON
_LIMITS = """\
* Metrics are of one log, on items that were held out; a live test may come out otherwise.
* Popular items are recommended more often than rare ones, as in any log. What a log leaves out, the model cannot know.
* A new user goes to the group with the nearest centroid, by at least one item of a history.
* Item vectors hold what ids have learnt: an item without interactions has its content part alone.
* Ids of users and items are those of the log; whether they may be passed on is for its owner to say."""
_BUNDLED = ", a folder that is bundled with recbole_perpeft or your own"
_ADAPTER = """\
```python
from peft import PeftModel
from transformers import {model}

model = PeftModel.from_pretrained({model}.from_pretrained("{base}"), "{folder}").eval()
```"""
_LISTS = """\
```python
import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

items = pd.read_parquet("items.parquet")
row_of = dict(zip(items["item_id"], items["row"]))
encoder = torch.export.load("user_encoder.pt2").module()


def vectors_of(group):
    return load_file(f"vectors/{{group}}.safetensors")["item_vectors"]  # row 0 stands for what is missing


def user_vector(history, vectors):  # item ids, oldest first
    rows = torch.zeros(1, {length}, dtype=torch.long)
    newest = [row_of[item] for item in history][-{length}:]
    rows[0, {length} - len(newest) :] = torch.tensor(newest)
    return encoder(vectors[rows], rows)


history = items["item_id"].tolist()[:3]
{group}
vectors = vectors_of(group)
scores = (user_vector(history, vectors) @ vectors[1:].T)[0]
best = items["item_id"].iloc[scores.topk(5).indices.numpy()].tolist()
```"""
_NEAREST = """\
groups = pd.read_parquet("groups.parquet")
centroids = torch.tensor(np.stack(groups["centroid"]))
nearest = torch.cdist(user_vector(history, vectors_of("global")), centroids).argmin().item()
group = f"group-{nearest}\""""
_WEIGHTS = """
Users of the training data are scored by all groups: `users.parquet` has what each group counts for a user (`weights`),
and a score is the weighted sum of those by all groups. The metrics above are of these scores.
"""
_PROJECTOR = """\
```python
from torch.nn.functional import layer_norm, linear, relu

weights = load_file("projectors.safetensors")


def content_part(content, group):  # what a group sees in content vectors, [n, {width}]
    def part(number, name):
        return weights[f"{{group}}.{{number}}.{{name}}"]

    hidden = linear(content, part(0, "weight"), part(0, "bias"))
    hidden = relu(layer_norm(hidden, hidden.shape[1:], part(1, "weight"), part(1, "bias"), 1e-8))
    hidden = linear(hidden, part(3, "weight"), part(3, "bias"))
    return {weight} * layer_norm(hidden, hidden.shape[1:], part(4, "weight"), part(4, "bias"), 1e-8)
```"""
_ONNX = """\
```python
import onnxruntime

session = onnxruntime.InferenceSession("user_encoder.onnx")
rows = torch.ones(2, {length}, dtype=torch.long)
vector = session.run(None, {{"item_vectors": vectors[rows].numpy(), "item_rows": rows.numpy()}})[0]
```"""


@dataclass(frozen=True)
class Trained:
    """What a card tells of.

    Attributes:
        run: the run folder.
        config: its settings.
        model: a `PerPEFT` or `GlobalPEFT`.
        n_interactions: of the log.
        banks: what the adapters are of, by the end of the names of their folders: one, or one a tower.
        has_onnx: whether the user encoder is there as ONNX too.
        licence: under which the export stands.
    """

    run: Path
    config: Any
    model: Any
    n_interactions: int
    banks: Mapping[str, AdapterBank]
    has_onnx: bool
    licence: str


def write_card(folder: Path, trained: Trained) -> None:
    """Write `README.md`."""
    config, model = trained.config, trained.model
    towers = settings_from(config, ItemEncoderSettings).by_role
    bases = sorted({name_of_base(tower.encoder) for tower in towers.values()})
    of_hub = [base for base in bases if "/" in base]
    head = {"license": trained.licence, "library_name": "peft"} | ({"base_model": of_hub} if of_hub else {})
    head["tags"] = ["recommendation", "sequential-recommendation", "peft"]
    record = RunRecord(trained.run)
    metrics = record.result["test_result"] if record.finished else {}
    groups = f" in {model.n_groups} groups" if model.n_groups else ""
    sizes = (
        f"{model.n_users - 1:,} users{groups}, {model.n_items - 1:,} items, {trained.n_interactions:,} interactions"
    )
    text = f"""\
---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# {config["model"]} on {config["dataset"]}

Item vectors for groups of users by adapters (`{config["peft_type"]}`) on {" and ".join(bases)}, and a user
encoder that reads them.

## Data and protocol

`{config["dataset"]}`: {sizes}.

{protocol_line({name: config[name] for name in keys_of_kind([RunSettings], "protocol")})}

## Metrics of the test items

{_table(("metric", "value"), metrics) if metrics else "The run was not finished: there are none."}

## Settings and versions

```yaml
{yaml.safe_dump(_settings(config), sort_keys=False, allow_unicode=True).strip()}
```

{_table(("package", "version"), _versions(trained.run))}

## Limits

{_LIMITS}

## Files, and how each is read

Run these lines in this folder, one block after the other.

Adapters, one folder for everybody (`global`) and one a group, in the form of the peft library.

{_adapters(trained, towers)}

Lists of a new user: `items.parquet` has the row of each item id, `vectors/` the item vectors of each group,
`user_encoder.pt2` the user encoder for PyTorch, `groups.parquet` (of a model with groups) the centroid of each.

{_LISTS.format(length=model.max_seq_length, group=_NEAREST if model.n_groups else 'group = "global"')}

Vectors of items are their content part and their id vector (`id_vectors.safetensors`, the same rows). A content vector
is what the adapted model says of an item: its parts, images before titles, each divided by its length and joined.

{_PROJECTOR.format(width=model.item_encoder.content_encoder.content_size, weight=model.item_encoder.content_weight)}
"""
    if model.mixes_groups:
        text += _WEIGHTS
    if trained.has_onnx:
        text += "\nThe user encoder for ONNX, for any number of users:\n\n"
        text += _ONNX.format(length=model.max_seq_length) + "\n"
    (folder / "README.md").write_text(text, encoding="utf-8")


def _adapters(trained: Trained, towers: Mapping[str, Tower]) -> str:
    """How an adapter of each tower is opened."""
    group = "group-0" if trained.model.n_groups else "global"
    blocks = []
    for place, bank in trained.banks.items():
        base = name_of_base(towers[place.strip("/") or next(iter(towers))].encoder)
        of = type(bank.base_model).__name__
        is_bundled = "/" not in base
        blocks.append(f"`{group}{place}` belongs to the {of} of {base}{_BUNDLED if is_bundled else ''}:")
        if hasattr(transformers, of):
            blocks.append(_ADAPTER.format(model=of, base=base, folder=f"{group}{place}"))
    return "\n\n".join(blocks)


def name_of_base(encoder: str) -> str:
    """A hub id, or the last part of a path of this machine."""
    path = Path(encoder).expanduser()
    return path.name if path.is_absolute() or path.exists() else encoder


def _settings(config: Any) -> dict[str, Any]:
    """Settings of model and training; none of them is a path."""
    names = [each.name for cls in config.settings_classes for each in cls.declared()]
    chosen = {name: config[name] for name in [*names, *_TRAINING] if name in config}
    plain = config.to_dict()
    return {name: plain[name] for name in chosen if name in plain and not _ABSOLUTE.search(json.dumps(plain[name]))}


def _versions(run: Path) -> dict[str, Any]:
    remedy = "take the one of the run, or delete it"
    path = run / ENVIRONMENT_FILE
    return read_json(path, {"packages": (dict,)}, remedy)["packages"] if path.is_file() else {}


def _table(header: Sequence[str], rows: Mapping[str, Any]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows.items())])
