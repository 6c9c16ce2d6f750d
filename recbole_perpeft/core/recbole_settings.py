"""Settings that RecBole itself reads, with the types of its documentation, checked before it reads them."""

from __future__ import annotations

from dataclasses import dataclass

from recbole_perpeft.core.settings import Settings, setting


@dataclass(frozen=True)
class RecBoleSettings(Settings):
    """RecBole's keys that are not among `RunSettings`, or that it takes in more forms than it keeps.

    Only the types count: defaults are RecBole's own.
    """

    metrics: str | list[str] = setting("NDCG")
    topk: int | list[int] | None = setting(10, least=1)
    eval_args: dict = setting({})
    plugin: str | list[str] | None = setting(None)
    valid_metric: str | None = setting(None)
    train_neg_sample_args: dict | None = setting(None)
    repeatable: bool | None = setting(None)
    require_pow: bool = setting(False)
    nproc: int = setting(1)
    world_size: int = setting(-1)
    encoding: str = setting("utf-8")

    field_separator: str = setting("\t")
    seq_separator: str = setting(" ")
    USER_ID_FIELD: str = setting("user_id")
    ITEM_ID_FIELD: str = setting("item_id")
    RATING_FIELD: str | None = setting("rating")
    TIME_FIELD: str | None = setting("timestamp")
    LABEL_FIELD: str | None = setting("label")
    NEG_PREFIX: str = setting("neg_")
    LIST_SUFFIX: str = setting("_list")
    ITEM_LIST_LENGTH_FIELD: str = setting("item_length")
    POSITION_FIELD: str = setting("position_id")
    HEAD_ENTITY_ID_FIELD: str = setting("head_id")
    TAIL_ENTITY_ID_FIELD: str = setting("tail_id")
    RELATION_ID_FIELD: str = setting("relation_id")
    ENTITY_ID_FIELD: str = setting("entity_id")
    kg_reverse_r: bool = setting(False)
    entity_kg_num_interval: str | None = setting(None)
    relation_kg_num_interval: str | None = setting(None)

    seq_len: dict | None = setting(None)
    numerical_features: list[str] | None = setting(None)
    unload_col: dict | None = setting(None)
    unused_col: dict | None = setting(None)
    additional_feat_suffix: str | list[str] | None = setting(None)
    alias_of_user_id: list[str] | None = setting(None)
    alias_of_item_id: list[str] | None = setting(None)
    alias_of_entity_id: list[str] | None = setting(None)
    alias_of_relation_id: list[str] | None = setting(None)
    preload_weight: dict | None = setting(None)
    normalize_field: list[str] | None = setting(None)
    normalize_all: bool | None = setting(None)
    discretization: dict | None = setting(None)
