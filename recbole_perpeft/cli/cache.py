"""`recbole-perpeft cache --dataset=<name> --text_encoder=<model>`, for instance ahead, on a machine with a GPU."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from recbole_perpeft.cli.flags import Flags
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.run_settings import PhotoLimits
from recbole_perpeft.data.atomic import BUNDLED_DATASET
from recbole_perpeft.data.content import IMAGE, MISSING_CONTENT, TITLE, ItemContent
from recbole_perpeft.data.files.atomic_table import TableReader, read_table
from recbole_perpeft.nn.layer_drop import LayerDropRule, LayerDropSettings
from recbole_perpeft.pretrained.tower import POOLINGS, QUANTIZATIONS, describe_backbone
from recbole_perpeft.store.states import HiddenStateCache, HiddenStateSettings

_DESCRIPTION = """\
Computes the hidden states of all items of a data set once and keeps them in a file. A run of IISAN builds what is
missing by itself; this builds it ahead. A build that was interrupted or killed goes on where it was."""


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The flags, named as the keys of a run."""
    flags = Flags(
        "cache",
        _DESCRIPTION,
        "--dataset=aspects --text_encoder=aspects-clip --image_encoder=aspects-clip",
        "--dataset=shop --data_path=my_data --text_encoder=bert-base-uncased "
        "--image_encoder=google/vit-base-patch16-224",
        "--dataset=shop --text_encoder=meta-llama/Meta-Llama-3-8B --engine=ray",
        "--dataset=shop --text_encoder=minilm --text_field=caption --layers=0,2,4,6",
        "--dataset=toys_games --states=toys_games_preX.pt",
    )
    _add_data(flags.add_argument_group("data"))
    _add_states(flags.add_argument_group("states"))
    _add_given(flags.add_argument_group("states of PerPEFT's authors"))
    _add_work(flags.add_argument_group("work"))
    options = flags.parse(words)
    if not (options.text_encoder or options.image_encoder or options.states):
        raise PerPEFTError("no encoder: name --text_encoder, --image_encoder or both, or a file of --states")
    if options.states and (options.text_encoder or options.image_encoder):
        raise PerPEFTError("--states come from --foundation_model: leave out --text_encoder and --image_encoder")
    return options


def _add_data(group) -> None:
    group.add_argument("--dataset", required=True, help="name of the data set")
    group.add_argument("--data_path", type=Path, default=Path("dataset_atomic"), help="folder that holds its folder")
    group.add_argument("--cache_folder", type=Path, default=Path("cache"), help="where caches are kept (%(default)s)")
    group.add_argument("--text_field", default=TITLE, help="column of the item file to encode (%(default)s)")
    group.add_argument(
        "--missing_content",
        choices=MISSING_CONTENT,
        default=MISSING_CONTENT[0],
        help="items without text or image: an error, or blank content (%(default)s)",
    )
    for limit in PhotoLimits.declared():
        group.add_argument(
            f"--{limit.name}", type=limit.plain_type, default=limit.default, help=f"{limit.help} (%(default)s)"
        )


def _add_states(group) -> None:
    named = "a hub id, a folder, or a bundled model"
    group.add_argument("--text_encoder", help=f"minilm, {named}; without it, texts are left out")
    group.add_argument("--image_encoder", help=f"{named}; without it, images are left out")
    group.add_argument(
        "--layers",
        "--cache_layers",
        type=_layers,
        default="dropped",
        help="states to keep: dropped (state 0 and the blocks of the keys below), full, or a list such as 0,2,4",
    )
    group.add_argument("--n_blocks", type=int, default=6, help="blocks that Group LayerDrop keeps (%(default)s)")
    group.add_argument(
        "--layerdrop_rule", choices=get_args(LayerDropRule), default="max_span", help="which of them (%(default)s)"
    )
    for kind in POOLINGS:
        group.add_argument(f"--{kind}_blocks", type=_numbers, help="instead of the rule, for instance 2,4,6")
    for kind, poolings in POOLINGS.items():
        group.add_argument(f"--{kind}_pooling", choices=poolings, help="default: as the encoder was trained")
    group.add_argument("--max_text_length", type=int, default=30, help="tokens of a text (%(default)s)")
    group.add_argument("--cache_dtype", choices=("float16", "float32"), default="float16", help="(%(default)s)")


def _add_given(group) -> None:
    group.add_argument("--states", type=Path, help="their <set>_preX.pt, which is taken in; nothing is computed")
    model = "openai/clip-vit-base-patch32"
    group.add_argument("--foundation_model", default=model, help="the model that they come from (%(default)s)")


def _add_work(group) -> None:
    group.add_argument("--batch_size", type=int, default=64, help="items encoded at once (%(default)s)")
    group.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu or cuda (%(default)s)")
    group.add_argument("--quantization", choices=QUANTIZATIONS, help="load weights in fewer bits; needs a GPU")
    group.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="ray: several workers (%(default)s)"
    )
    group.add_argument("--n_workers", type=int, help="workers of ray; default: one a GPU, or one a core")
    group.add_argument("--no_progress", action="store_true", help="show no progress bars")


def run(options: argparse.Namespace) -> int:
    """Build the caches, or take them in, and list them."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    for cache in _given(options) if options.states else _build(options):
        size = cache.n_bytes() / 2**20
        states = ", ".join(map(str, cache.layers)) or "none"
        print(f"{cache.folder}: {cache.n_rows:,} items, states {states}, {size:,.1f} MiB")
    return 0


def _given(options: argparse.Namespace) -> list[HiddenStateCache]:
    from recbole_perpeft.convert.sources.perpeft_states import import_states

    content = ItemContent.load(options.data_path / options.dataset, options.dataset, (), options.missing_content)
    content.check({})
    return import_states(
        options.states,
        content,
        options.cache_folder,
        options.foundation_model,
        options.cache_dtype,
        not options.no_progress,
    )


def _build(options: argparse.Namespace) -> list[HiddenStateCache]:
    encoders = {"text": options.text_encoder, "image": options.image_encoder}
    fields = {"text": options.text_field, "image": IMAGE}
    kinds = [kind for kind, encoder in encoders.items() if encoder is not None]
    # All settings are looked at before hours of work begin.
    settings = {kind: _settings(options, kind, encoders[kind]) for kind in kinds}
    content = _content(options, [fields[kind] for kind in kinds])
    return [
        HiddenStateCache.open_or_build(
            content, fields[kind], settings[kind], options.cache_folder, not options.no_progress
        )
        for kind in kinds
    ]


def _settings(options: argparse.Namespace, kind: str, encoder: str) -> HiddenStateSettings:
    n_layers = describe_backbone(encoder, kind, options.cache_folder).n_layers
    if options.layers == "dropped":
        blocks = getattr(options, f"{kind}_blocks")
        settings = LayerDropSettings(options.n_blocks, options.layerdrop_rule, **{f"{kind}_blocks": blocks})
        (layers,) = settings.states([n_layers], (kind,))
    elif options.layers == "full":
        layers = tuple(range(n_layers + 1))
    else:
        layers = options.layers
    return HiddenStateSettings(
        encoder=encoder,
        layers=layers,
        pooling=getattr(options, f"{kind}_pooling"),
        max_length=options.max_text_length,
        dtype=options.cache_dtype,
        batch_size=options.batch_size,
        device=options.device,
        quantization=options.quantization,
        engine=options.engine,
        n_workers=options.n_workers,
    )


def _content(options: argparse.Namespace, fields: list[str]) -> ItemContent:
    folder = options.data_path / options.dataset
    if not folder.exists() and options.dataset == BUNDLED_DATASET:
        from recbole_perpeft.data.aspects.catalogue import make_aspects

        make_aspects(folder, exist_ok=True, show_progress=not options.no_progress)
    if not folder.is_dir():
        raise PerPEFTError(f"there is no data set {options.dataset}: {folder} is missing; set --data_path")
    limits = PhotoLimits(options.photo_seconds, options.photo_memory)
    return ItemContent.load(folder, options.dataset, _item_tokens(folder), options.missing_content, fields, limits)


def _item_tokens(folder: Path) -> list[str]:
    """Items that occur in the logs of a data set."""
    tokens: set[str] = set()
    for log in sorted(folder.glob("*.inter")):
        table = read_table(TableReader(log, lambda name: name == "item_id", "\t"))
        if not table.types:
            raise PerPEFTError(f"{log}, line 1: there is no column item_id:token; add it")
        tokens.update(table.rows["item_id"].dropna().unique())
    return sorted(tokens)


def _layers(text: str) -> str | tuple[int, ...]:
    return text if text in ("dropped", "full") else _numbers(text)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 0,2,4") from error
