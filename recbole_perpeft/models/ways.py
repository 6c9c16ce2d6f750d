"""Ways of adapting encoders, by name: one list for PerPEFT and GlobalPEFT (`peft_type`) and MoRec (`adaptation`).

A way is a function of a builder and of the user's options, the keys of `peft_config`. What only says what trains in an
encoder is one line; a module of a user's own, named by `plugin`, adds one so:

    @WAYS.register("norms")
    def norms(builder, options):
        return builder.adapted(train_norms)

`train_norms` takes a frozen encoder and turns gradients on where it is to be trained, or puts in what is new.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.registry import Registry
from recbole_perpeft.core.settings import settings_from
from recbole_perpeft.models.build import ContentBuilder, side_content
from recbole_perpeft.nn.adapt.methods import PeftMethod, is_peft_type, supported_peft_types
from recbole_perpeft.nn.adapt.tuning import HoulsbyAdapters, train_all, train_biases
from recbole_perpeft.nn.content import ContentEncoder, NoContent
from recbole_perpeft.nn.layer_drop import LayerDropSettings
from recbole_perpeft.nn.side_network import SideNetworkSettings

Options = Mapping[str, Any]
Way = Callable[[ContentBuilder, Options], ContentEncoder]

WAYS: Registry[Way] = Registry("peft_type", {"frozen": "recbole_perpeft.models.ways:none"})


def way_names() -> list[str]:
    """All names, in lower case; those of peft depend on its release."""
    return sorted({*WAYS.names(), *supported_peft_types()})


def adapt(builder: ContentBuilder, name: str, options: Options | None, key: str = "peft_type") -> ContentEncoder:
    """A content encoder by the name of its way of adapting.

    Args:
        builder: Encoders, items and places.
        name: One of `way_names`, in any case.
        options: The way's own settings; each replaces a default.
        key: The setting that gave the name, for messages.

    Raises:
        PerPEFTError: The name is unknown or cannot be used here, or as the way raises.
    """
    return _way(str(name).lower(), key)(builder, dict(options or {}))


def _way(name: str, key: str) -> Way:
    if name in WAYS:
        return WAYS.get(name)
    if is_peft_type(name):
        return lambda builder, options: builder.adapted(PeftMethod(name, options))
    close = difflib.get_close_matches(name, way_names(), n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise PerPEFTError(f"{key}: {name!r} is unknown{hint}; choose one of {', '.join(way_names())}")


@WAYS.register("none")
def none(builder: ContentBuilder, options: Options) -> ContentEncoder:
    """Encoders that stay as they are; also named `frozen`."""
    read_options("none", options)
    return builder.frozen()


@WAYS.register("ids")
def ids(builder: ContentBuilder, options: Options) -> ContentEncoder:
    """No content at all: the same recommender by ids alone, to compare with."""
    read_options("ids", options)
    return NoContent()


@WAYS.register("full")
def full(builder: ContentBuilder, options: Options) -> ContentEncoder:
    """All weights train."""
    read_options("full", options)
    return builder.adapted(train_all)


@WAYS.register("bitfit")
def bitfit(builder: ContentBuilder, options: Options) -> ContentEncoder:
    """All biases train (Ben Zaken, Ravfogel and Goldberg, ACL 2022, arXiv 2106.10199)."""
    read_options("bitfit", options)
    return builder.adapted(train_biases)


@WAYS.register("adapter")
def adapter(builder: ContentBuilder, options: Options) -> ContentEncoder:
    """Two adapters in each block (Houlsby et al., ICML 2019, arXiv 1902.00751)."""
    (adapters,) = read_options("adapter", options, HoulsbyAdapters())
    return builder.adapted(adapters)


@WAYS.register("iisan")
def iisan(builder: ContentBuilder, options: Options) -> ContentEncoder:
    """Side networks on stored hidden states (Fu et al., SIGIR 2024, arXiv 2404.02059)."""
    defaults = (SideNetworkSettings(), LayerDropSettings(), builder.settings.as_towers())
    side, layer_drop, encoders = read_options("iisan", options, *defaults)
    return side_content(encoders, side, layer_drop, builder.around)


def read_options(way: str, options: Options, *defaults: Any) -> list[Any]:
    """Settings with a way's options in place of their own values.

    Args:
        way: Its name, for messages.
        options: By name of their fields.
        *defaults: The settings, dataclasses.

    Raises:
        PerPEFTError: An option belongs to none of them, or its value is not possible.
    """
    names = [{field.name for field in dataclasses.fields(each)} for each in defaults]
    unknown = sorted(set(options).difference(*names))
    if unknown and not defaults:
        raise PerPEFTError(
            f"peft_config: means nothing with peft_type {way}; leave it empty or choose another peft_type"
        )
    if unknown:
        raise PerPEFTError(
            f"peft_config: {', '.join(unknown)} means nothing with peft_type {way}; choose among "
            f"{', '.join(sorted(set().union(*names)))}"
        )
    return [
        settings_from(vars(each) | {key: options[key] for key in own & set(options)}, type(each))
        for each, own in zip(defaults, names, strict=True)
    ]
