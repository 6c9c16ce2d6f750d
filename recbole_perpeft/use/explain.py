"""Explanations in words from a trained VIP5, and how good they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.explanations import are_interactions
from recbole_perpeft.models.vip5.text_metrics import chance_share, named_share, text_scores
from recbole_perpeft.runs.run import load

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class ExplanationReport:
    """Generated explanations of interactions.

    Attributes:
        rows: Columns `user_id`, `item_id` (tokens), `reference`, `generated`, and `feature` if the side file has it.
        scores: `text_scores` of the generated sentences; if there are features, `named` and `chance`.
        baseline: The same for the most frequent sentence of the train rows.
    """

    rows: pd.DataFrame
    scores: dict[str, float]
    baseline: dict[str, float]


def explain(
    model_file: str | Path,
    prompt: str = "C-3",
    split: str = "test",
    n_beams: int = 1,
    batch_size: int = 256,
    show_progress: bool = True,
    config_dict: dict | None = None,
) -> ExplanationReport:
    """Generates the explanations of a split and compares them with what users said.

    Args:
        model_file: Checkpoint or run folder of a VIP5 that was trained on explanations.
        prompt: Template of the group `explanation`.
        split: `train`, `valid` or `test`: rows whose interaction is in that part of the leave-one-out split.
        n_beams: 1 decodes greedily.
        batch_size: Prompts at once.
        show_progress: Whether to show a progress bar.
        config_dict: Settings to change, such as `data_path`.

    Raises:
        PerPEFTError: The checkpoint is of another model or knows no explanations, the template does not exist, or the
            split has no rows.
    """
    _, model, dataset, *loaders = load(model_file, config_dict)
    template = getattr(model, "templates", {}).get(prompt)
    if not hasattr(model, "explain"):
        raise PerPEFTError(f"{model_file} is a checkpoint of {type(model).__name__}; explanations are made by VIP5")
    if model.explanations.empty:
        raise PerPEFTError(f"{model_file} was trained without explanations; give them a weight in task_weights")
    if template is None or template.task != "explanation":
        names = [name for name, one in model.templates.items() if one.task == "explanation"]
        raise PerPEFTError(f"prompt: {prompt!r} is no template of explanations; choose of {', '.join(names)}")
    rows_of = {
        name: np.flatnonzero(are_interactions(model.explanations, loader.dataset.phase_history))
        for name, loader in zip(SPLITS, loaders, strict=True)
    }
    # Who bought an item again explains it once: such rows are trained on.
    rows = rows_of[split] if split == "train" else np.setdiff1d(rows_of[split], rows_of["train"])
    if not len(rows):
        raise PerPEFTError(f"the side file explains no interaction of the {split} part")
    generated = []
    for start in tqdm(range(0, len(rows), batch_size), desc="explaining", disable=not show_progress):
        generated += model.explain(template, rows[start : start + batch_size], n_beams)
    references = model.writer.references(template, rows)
    common = pd.Series(model.writer.references(template, rows_of["train"])).mode()[0]
    features = model.explanations["feature"].iloc[rows].tolist() if "feature" in model.explanations else None
    said = model.explanations.iloc[rows]
    table = pd.DataFrame(
        {
            "user_id": dataset.id2token(dataset.uid_field, said["user_id"].to_numpy()),
            "item_id": dataset.id2token(dataset.iid_field, said["item_id"].to_numpy()),
            **({} if features is None else {"feature": features}),
            "reference": references,
            "generated": generated,
        }
    )
    return ExplanationReport(
        table, _scores(generated, references, features), _scores([common] * len(rows), references, features)
    )


def _scores(generated: Sequence[str], references: Sequence[str], features: Sequence[str] | None) -> dict[str, float]:
    scores = text_scores(generated, references)
    if features is not None:
        scores |= {"named": named_share(generated, features), "chance": chance_share(features)}
    return scores
