"""Which encoders read what."""

import pytest

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.models.towers import EncoderSettings, Tower

CAPTION = {"field": "caption", "encoder": "minilm", "pooling": "mean"}


def test_one_class_decides_fields_and_encoders():
    both = EncoderSettings(text_encoder="bert", image_encoder="vit", image_pooling="mean")
    assert both.chosen == (Tower("title", "bert"), Tower("image", "vit", "mean"))
    assert both.fields == ("title", "image") and list(both.by_role) == ["text", "image"]
    images = EncoderSettings(image_encoder="vit", text_encoder="")
    assert images.fields == ("image",) and list(images.by_role) == ["image"]
    texts = EncoderSettings(
        text_encoder="bert", image_encoder="vit", towers=[{"field": "title", "encoder": "e"}, CAPTION]
    )
    assert texts.fields == ("title", "caption")
    assert texts.by_role == {"text": Tower("title", "e"), "image": Tower("caption", "minilm", "mean")}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "0 towers: .*name text_encoder, image_encoder, or towers"),
        ({"text_encoder": ""}, "0 towers"),
        ({"towers": [CAPTION] * 3}, "3 towers"),
        ({"towers": [{"field": "title"}]}, "does not describe a tower"),
        ({"text_encoder": "bert", "encoder_chunk_size": 0}, "encoder_chunk_size is 0"),
        ({"text_encoder": "bert", "max_text_length": 0}, "max_text_length is 0"),
        ({"text_encoder": "bert", "cache_dtype": "int8"}, "cache_dtype is 'int8'"),
    ],
)
def test_wrong_settings_name_their_key(settings, message):
    with pytest.raises(PerPEFTError, match=message):
        EncoderSettings(**settings)
