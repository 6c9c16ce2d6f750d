"""The user encoder by its name."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from recbole_perpeft.core.registry import Registry
from recbole_perpeft.core.settings import Settings, setting, settings_from

USER_ENCODERS: Registry[Any] = Registry(
    "user_encoder",
    {
        "sasrec": "recbole_perpeft.nn.users.sasrec:SASRecUserEncoder",
        "iisan": "recbole_perpeft.nn.users.iisan:IISANUserEncoder",
    },
)


@dataclass(frozen=True)
class UserEncoderChoice(Settings):
    """Which user encoder."""

    user_encoder: str = setting(
        "sasrec", "sasrec as PerPEFT's authors have it, or iisan as IISAN's.", registry=USER_ENCODERS
    )


class UserEncoder(Protocol):
    """A module that makes vectors of users from the vectors of their items, as `SASRecUserEncoder` does."""

    def __call__(self, item_vectors: Tensor, item_seq: Tensor, /) -> Tensor:
        """Hidden vectors [B, L, d] of left-padded sequences."""

    def newest(self, item_vectors: Tensor, item_seq: Tensor) -> Tensor:
        """Those of the last slot, [B, d]."""

    def reset_parameters(self) -> None:
        """Start with fresh weights."""


def build_user_encoder(config, max_seq_length: int) -> UserEncoder:
    """The user encoder that the key `user_encoder` names.

    Args:
        config: RecBole configuration; the encoder names its settings in `settings_classes`.
        max_seq_length: L.

    Raises:
        PerPEFTError: The name is unknown, or a setting is out of range.
    """
    encoder_class = USER_ENCODERS.get(settings_from(config, UserEncoderChoice).user_encoder)
    settings = [settings_from(config, cls) for cls in encoder_class.settings_classes]
    return encoder_class(*settings, max_seq_length)
