"""Settings that every run reads, checked before anything is read or written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recbole_perpeft.core.errors import PerPEFTError, shown
from recbole_perpeft.core.protocol import check_eval_args, check_interval, places_of_parts
from recbole_perpeft.core.settings import Settings, same_as, setting

LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")
FUSED_LEARNERS = ("adam", "adamw", "sgd")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


@dataclass(frozen=True)
class PhotoLimits(Settings):
    """What decoding a photo may take that was made to take for ever; plain ones are bounded by their pixels."""

    photo_seconds: float = setting(
        60.0, "Seconds that decoding a photo may take; one that takes longer cannot be used.", above=0, kind="device"
    )
    photo_memory: int = setting(
        2048,
        "MiB of memory that decoding a photo may take; one that takes more cannot be used.",
        least=1,
        kind="device",
    )


USUAL_LIMITS = PhotoLimits()


_OF_CLIPPING = ("norm_type", "error_if_nonfinite", "foreach")  # of `clip_grad_norm_`


@dataclass(frozen=True)
class RunSettings(Settings):
    """What every run reads, whatever the model.

    Defaults are RecBole's where it has the key; `properties/overall.yaml` has those of this package over them.
    """

    model: str = setting("PerPEFT", "The model, ours or RecBole's; --list_models prints all.")
    dataset: str = setting("aspects", "The data set: the name of its folder and of its atomic files.")
    data_path: str = setting("dataset/", "The folder that holds the data sets' folders.", kind="place")
    cache_folder: str = setting("cache", "Where processed images and titles are kept between runs.", kind="place")
    runs_folder: str = setting("runs", "Every run makes one folder below this one.", kind="place")
    run_folder: str | None = setting(
        None, "The folder of this run, instead of a name with model, data set, time and seed.", kind="place"
    )

    plugin: str | list[str] | None = setting(
        None, "Modules of your own that register losses, models and the like, separated by commas."
    )

    nproc: int = setting(1, "Processes that train together, each with a GPU if there are any.", least=1, kind="device")
    ray_address: str | None = setting(
        None,
        "With nproc or groups_at_once: of a Ray cluster, auto or host:port; ~ trains on this machine.",
        kind="device",
    )
    max_failures: int = setting(
        2,
        "With nproc or groups_at_once: how often a training goes on from last.pth when a process is lost.",
        least=0,
        kind="device",
    )
    cpus: float | None = setting(
        None,
        "With nproc or groups_at_once: processors of each process; ~ for an equal share of this machine's, and for "
        "one on a cluster.",
        above=0,
        kind="device",
    )
    gpu_id: str | None = setting("0", "The GPU, counted among those that are visible to the process.", kind="device")
    use_gpu: bool = setting(True, "Whether to use a GPU if there is one.", kind="device")
    worker: int = setting(0, "Processes that load batches; 0 loads in the main process.", least=0, most=256)
    seed: int = setting(2020, "Seed of everything that is drawn.", least=0, most=2**32 - 1)
    reproducibility: bool = setting(True, "Whether to choose reproducible CUDA algorithms.")
    state: str = setting("INFO", f"Level of the log: {', '.join(LEVELS)}.", kind="display")
    show_progress: bool = setting(True, "Whether to show progress bars.", kind="display")
    trackers: str | list[str] | None = setting(
        ["tensorboard"],
        "Who is told how the run goes: tensorboard, wandb, mlflow, codecarbon; ~ for nobody.",
        kind="display",
    )
    log_wandb: bool = setting(
        False, "Whether to log to Weights & Biases: RecBole's word for the tracker.", kind="display"
    )
    wandb_project: str = setting("recbole", "With wandb: the project.", kind="display")

    load_col: dict | None = setting(
        {"inter": ["user_id", "item_id"]},
        "Columns read from each atomic file; titles and images have their own reader.",
    )
    keep_log: Literal["auto", "always", "never"] = setting(
        "auto",
        "Whether the log is kept in cache_folder as numbers, so that its text is read once: auto from 64 MB on.",
        kind="device",
    )
    missing_content: Literal["error", "blank"] = setting(
        "error", "Items without a readable image or title: error, or blank to go on without it."
    )
    photo_seconds: float = same_as(PhotoLimits, "photo_seconds")
    photo_memory: int = same_as(PhotoLimits, "photo_memory")
    MAX_ITEM_LIST_LENGTH: int = setting(50, "Number of latest items a sequential model sees.", least=1)

    epochs: int = setting(300, "Largest number of epochs.", least=1)
    train_batch_size: int = setting(2048, "Rows of a training batch.", least=1)
    batches_a_step: int = setting(0, "Batches whose mean gradient makes a step; 0 for one a process (nproc).", least=0)
    learner: str = setting("adam", f"Optimiser: {', '.join(LEARNERS)}.")
    fused: bool = setting(
        False, f"Whether {', '.join(FUSED_LEARNERS)} step by PyTorch's fused kernels: faster, with other last digits."
    )
    learning_rate: float = setting(1e-3, "Learning rate.", least=0, kind="rate")
    weight_decay: float = setting(0.0, "Weight decay.", least=0, kind="rate")
    clip_grad_norm: dict | None = setting(None, "Limit of the norm of the gradient, such as {max_norm: 5}.")
    shuffle: bool = setting(True, "Whether each epoch has its own order.")
    enable_amp: bool = setting(False, "Whether to compute in bfloat16 (float16 with enable_scaler).")
    enable_scaler: bool = setting(False, "Whether to scale the loss on a GPU; needed for float16 only.")
    loss_decimal_place: int = setting(4, "Decimals of reported losses.", least=0)
    keep_catalogues: int = setting(
        1024,
        "MB of item vectors that a run keeps beside its best model at most, so that lists encode nothing; 0 for none.",
        least=0,
        kind="device",
    )

    benchmark_filename: list[str] | None = setting(
        None, "Suffixes of the parts of a log that is split already.", kind="protocol"
    )
    user_inter_num_interval: str | None = setting(
        "[0,inf)", "Users with fewer or more interactions leave.", kind="protocol"
    )
    item_inter_num_interval: str | None = setting(
        "[0,inf)", "Items with fewer or more interactions leave.", kind="protocol"
    )
    val_interval: dict | None = setting(None, "Interactions that stay, as {column: interval}.", kind="protocol")
    filter_inter_by_user_or_item: bool = setting(
        True, "Whether interactions of users and items that leave do too.", kind="protocol"
    )
    rm_dup_inter: Literal["first", "last"] | None = setting(
        None, "Which of the interactions of a user with an item stays; ~ for all.", kind="protocol"
    )
    threshold: dict | None = setting(None, "Makes labels, as {column: least value}.", kind="protocol")
    eval_args: dict = setting(
        {"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "user", "order": "RO", "mode": "full"},
        "Split {LS: valid_and_test} leaves the last items out, order TO is by time, group_by user splits each user on "
        "his own, mode full ranks all items and uniN or popN N drawn ones.",
        kind="protocol",
    )
    mask_history: Literal["all", "keep_target", "none"] = setting(
        "keep_target",
        "Which seen items leave the candidates: all, keep_target (all but the target) or none.",
        kind="protocol",
    )
    shuffle_histories: bool = setting(
        False, "A control: the train items of each user in an order drawn by the seed, to tell what their order adds."
    )
    metrics: list[str] = setting([], "Metrics of RecBole.", kind="protocol")
    topk: list[int] = setting([], "Cut-offs of the metrics.", kind="protocol")
    metric_decimal_place: int = setting(4, "Decimals of reported metrics.", least=0, kind="protocol")
    diversity_encoder: str | dict | None = setting(
        None,
        "Untouched encoder whose vectors tell how much the items of a test list differ, whatever the model: its name "
        "for titles and photos, or {text_encoder: ..., image_encoder: ...}; ~ for no diversity.",
        kind="display",
    )
    valid_metric: str | None = setting(None, "Chooses the best epoch and stops early.", kind="protocol")
    eval_step: int = setting(1, "Epochs between two evaluations on the valid items.", least=0, kind="protocol")
    eval_sample: int = setting(
        0,
        "Valid users, drawn by the seed, on whom epochs are evaluated while a model trains; the best one is evaluated "
        "on all of them in the end. 0 for all from the beginning.",
        least=0,
        kind="protocol",
    )
    stopping_step: int = setting(
        10, "Stop after so many evaluations without a better valid_metric.", least=0, kind="protocol"
    )
    eval_batch_size: int = setting(
        4096, "Users of an evaluation batch; fewer where users times items are more than 134 million.", least=1
    )

    def check(self) -> None:
        """Names of the data set, the optimiser, the level of the log and the metric; parts of `eval_args`."""
        if self.dataset in (".", "..") or "/" in self.dataset or "\\" in self.dataset:
            raise PerPEFTError(f"dataset is {self.dataset!r}: give a name, and the folder above it as data_path")
        # As RecBole takes them: in small or large letters.
        for key, known in (("learner", LEARNERS), ("state", LEVELS)):
            if getattr(self, key).lower() not in map(str.lower, known):
                raise PerPEFTError(f"{key} is {getattr(self, key)!r}: it must be one of {', '.join(known)}")
        if self.fused and self.learner.lower() not in FUSED_LEARNERS:
            raise PerPEFTError(
                f"fused: True is for the learners {', '.join(FUSED_LEARNERS)}; {self.learner} has no fused kernel, set"
                " fused to False"
            )
        for key in ("user_inter_num_interval", "item_inter_num_interval"):
            check_interval(key, getattr(self, key))
        for column, kept in (self.val_interval or {}).items():
            if not isinstance(kept, list):  # of values of a column of tokens
                check_interval(f"val_interval of {column}", kept)
        self._check_clipping()
        check_eval_args(self.eval_args)
        if self.benchmark_filename is not None:
            places_of_parts(self.benchmark_filename)
        self._check_valid_metric()

    def _check_clipping(self) -> None:
        limits = self.clip_grad_norm or {}
        largest, others = limits.get("max_norm"), set(limits) - {"max_norm", *_OF_CLIPPING}
        if limits and (others or not isinstance(largest, int | float) or not largest > 0):
            raise PerPEFTError(
                f"clip_grad_norm is {shown(limits)}: it must be such as {{max_norm: 5}}, a number above 0, with "
                f"{', '.join(_OF_CLIPPING)} beside it or not"
            )

    def _check_valid_metric(self) -> None:
        if self.valid_metric is None:
            return
        ranking = [f"{metric}@{place}" for metric in self.metrics for place in self.topk]
        if self.valid_metric.lower() not in {name.lower() for name in (*ranking, *self.metrics)}:
            raise PerPEFTError(
                f"valid_metric is {self.valid_metric}, which metrics {self.metrics} and topk {self.topk} do not give: "
                f"choose one of {', '.join(ranking or self.metrics)}"
            )


@dataclass(frozen=True)
class RecBoleModelSettings(Settings):
    """What models of RecBole name alike that may change while they learn; each reads some."""

    dropout_prob: float = setting(0.0, "Dropout.", kind="rate")
    hidden_dropout_prob: float = setting(0.0, "Dropout of hidden states.", kind="rate")
    attn_dropout_prob: float = setting(0.0, "Dropout of attention weights.", kind="rate")
    reg_weight: float | list[float] = setting(0.0, "Weight of the regularisation of vectors.", kind="rate")


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
    world_size: int = setting(-1)
    encoding: str = setting("utf-8")
    transform: str | None = setting(
        None, choices=("mask_itemseq", "inverse_itemseq", "crop_itemseq", "reorder_itemseq", "user_defined")
    )

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
