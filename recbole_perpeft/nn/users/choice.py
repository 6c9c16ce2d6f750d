"""The user encoder by its name."""

from dataclasses import dataclass
from typing import Any

from torch import nn

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


def build_user_encoder(config, max_seq_length: int) -> nn.Module:
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
