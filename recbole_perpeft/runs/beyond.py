"""What a run tells of its test lists beside their hits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.utils import EvaluatorType

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.run_settings import PhotoLimits
from recbole_perpeft.core.settings import settings_from
from recbole_perpeft.data.content import ItemContent
from recbole_perpeft.data.history import interactions_of
from recbole_perpeft.models.build import Surroundings, stored_content
from recbole_perpeft.models.towers import EncoderSettings
from recbole_perpeft.nn.joined_content import UnitVectors
from recbole_perpeft.training.list_figures import ContentOf, ListFigures


def list_figures(
    config, train_part, user_group: torch.Tensor | None = None, content: ContentOf | None = None
) -> ListFigures | None:
    """What counts the test lists of a run; None where it has none: with drawn candidates, or without ranking.

    Args:
        config: RecBole configuration.
        train_part: as `build()` of any data set class returns it.
        user_group: int64 [n_users], -1 for none; None for models without groups.
        content: as from `content_of`.
    """
    if config["eval_type"] != EvaluatorType.RANKING or config["eval_args"]["mode"]["test"] != "full":
        return None
    (_, items), *_ = interactions_of([train_part])
    counts = np.bincount(items, minlength=train_part.item_num)
    return ListFigures(config["topk"], counts, user_group, content)


def result_of(figures: ListFigures | None, config) -> dict[str, Any]:
    """What `result.json` has of them: `test_lists`, where the model has groups `test_lists_by_group`, and the encoder
    of diversity."""
    if figures is None:
        return {}
    groups, encoder = figures.by_group(), config["diversity_encoder"]
    found: dict[str, Any] = {"test_lists": figures.overall()}
    found |= {"test_lists_by_group": groups} if groups else {}
    return found | ({} if encoder is None else {"diversity_encoder": encoder})


def content_of(config, dataset) -> ContentOf | None:
    """Vectors of the untouched encoder of `diversity_encoder`, which are made if they are not kept; None without one.

    The cosine of two items is the mean of those of their titles and of their photos.

    Args:
        config: RecBole configuration.
        dataset: gives the tokens of items.

    Raises:
        PerPEFTError: the encoder, or what it is to read, cannot be used.
    """
    if config["diversity_encoder"] is None:
        return None
    encoders, tokens = diversity_encoders(config["diversity_encoder"]), dataset.field2id_token[dataset.iid_field]
    content = ItemContent.load(
        config.dataset_folder,
        config["dataset"],
        tokens[1:],
        config["missing_content"],
        encoders.fields,
        settings_from(config, PhotoLimits),
    )
    around = Surroundings(content, tokens, Path(config["cache_folder"]), bool(config["show_progress"]))
    encoder, scale = stored_content(encoders, around, UnitVectors), len(encoders.chosen) ** -0.5

    @torch.no_grad()
    def vectors(items: torch.Tensor) -> torch.Tensor:
        return encoder(items, None) * scale

    return vectors


def diversity_encoders(value: str | Mapping[str, Any]) -> EncoderSettings:
    """The encoders that `diversity_encoder` names; texts are read as far as the encoder can.

    Raises:
        PerPEFTError: it has a key that encoders do not have.
    """
    named = {"text_encoder": value, "image_encoder": value} if isinstance(value, str) else dict(value)
    known = [declared.name for declared in EncoderSettings.declared()]
    if unknown := [key for key in named if key not in known]:
        raise PerPEFTError(
            f"diversity_encoder: {unknown[0]!r} is no setting of encoders: choose of {', '.join(known)}"
        )
    return settings_from({"max_text_length": None} | named, EncoderSettings)
