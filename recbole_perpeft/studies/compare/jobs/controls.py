"""Models that a model of content must beat before its content, its groups or the order of histories count."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from recbole.utils import ModelType

from recbole_perpeft.core.settings import settings_from
from recbole_perpeft.models.build import ContentControl
from recbole_perpeft.models.perpeft.content import ItemEncoderSettings
from recbole_perpeft.models.perpeft.model import GroupSettings
from recbole_perpeft.models.towers import EncoderSettings
from recbole_perpeft.runs.config import Config
from recbole_perpeft.studies.compare.jobs.specs import ModelSpec


def controls_of(spec: ModelSpec, config: Config, true_group_field: str | None = None) -> list[ModelSpec]:
    """The controls of a model, each with what differs from it; nothing for models that read no content.

    Args:
        spec: the model.
        config: its settings.
        true_group_field: column of the `.user` file that names the users' true groups.
    """
    if ContentControl not in config.settings_classes:
        return []
    changes = dict(_of_content(config)) | dict(_of_users(config, true_group_field))
    return [
        ModelSpec(f"{spec.name}, {title}", change.pop("model", spec.model), dict(spec.settings) | change)
        for title, change in changes.items()
    ]


def _of_content(config: Config) -> Iterator[tuple[str, dict[str, Any]]]:
    kind = next((each for each in config.settings_classes if issubclass(each, EncoderSettings)), None)
    if kind is None:  # a model of a project of its own, which reads content in its own way
        yield from (
            ("content of other items", {"shuffle_content": True}),
            ("noise for content", {"noise_content": True}),
        )
        return
    encoders = settings_from(config, kind)
    if not encoders.fields:  # ids alone
        return
    yield "content of other items", {"shuffle_content": True}
    yield "noise for content", {"noise_content": True}
    declared = {each.name for each in kind.declared()}
    nothing = dict.fromkeys({"foundation_model", "text_encoder", "image_encoder"} & declared)
    if len({tower.kind for tower in encoders.chosen}) > 1:
        for role, title in (("text", "titles alone"), ("image", "photos alone")):
            towers = [_described(tower) for tower in encoders.chosen if tower.kind == role]
            yield title, nothing | {"towers": towers}
    if issubclass(kind, ItemEncoderSettings):
        yield "ids alone", {"model": "GlobalPEFT", "peft_type": "ids"}


def _described(tower: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(tower).items() if value is not None}


def _of_users(config: Config, true_group_field: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    if config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
        yield "histories shuffled", {"shuffle_histories": True}
    if not getattr(config.model_class, "personalised_stage", False):
        return
    grouping = settings_from(config, GroupSettings).grouping
    if grouping != "random":
        yield "random groups", {"grouping": "random"}
    if true_group_field is not None and grouping != "user_field":
        columns = dict(config["load_col"] or {})
        columns["user"] = [*dict.fromkeys([config["USER_ID_FIELD"], *columns.get("user", ()), true_group_field])]
        yield (
            f"groups by {true_group_field}",
            {"grouping": "user_field", "group_field": true_group_field, "load_col": columns},
        )
