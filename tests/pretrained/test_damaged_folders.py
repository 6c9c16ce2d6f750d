"""Whatever is wrong with the files of an encoder is one sentence that names its folder."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import recbole_perpeft
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.pretrained.dual import FoundationModel
from recbole_perpeft.pretrained.locate import loading, locate_foundation, weights_fingerprint
from recbole_perpeft.pretrained.processor import Processor
from recbole_perpeft.pretrained.tower import Backbone
from recbole_perpeft.store.states import HiddenStateCache, HiddenStateSettings
from support import tiny_encoders as tiny
from support.small_recipe import load
from support.versions import HAS_TRANSFORMERS_5

BUNDLED = Path(recbole_perpeft.__file__).parent / "pretrained" / "aspects-clip"
FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(BUNDLED, tmp_path / "clip")


def use(folder):
    """Everything that is made of a folder before the first step of a training."""
    processor = Processor.from_pretrained(folder)
    processor.image(Image.new("RGB", (30, 20)))
    processor.text(["a red cup"])
    Processor.from_encoders(folder, folder, max_text_length=16)
    weights_fingerprint(str(folder), "text")
    for kind in ("text", "image"):
        Backbone.skeleton(folder, kind)
    Backbone.from_pretrained(folder, "image")
    FoundationModel.from_pretrained(folder)


def error_of(folder):
    with pytest.raises(PerPEFTError) as caught:
        use(folder)
    return str(caught.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["empty", "cut", "list"])
def test_files_that_are_cut_or_empty_are_named(folder, name, how):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes({"empty": b"", "cut": data[: len(data) // 2], "list": b"[1, 2]"}[how])
    message = error_of(folder)
    assert str(folder) in message and name in message and "\n" not in message


WRONG = {
    "config.json": [
        {"num_hidden_layers": 10**6},
        {"vision_config": {"image_size": 10**6}},
        {"vision_config": {"hidden_size": "x"}},
        {"text_config": None},
        {"model_type": "nothing"},
        {"pretrained_cfg": 3},
        {"pretrained_cfg": {"input_size": [3, "a", None]}},
    ],
    "preprocessor_config.json": [
        {"size": {"shortest_edge": 10**9}},
        {"crop_size": {"height": 10**6, "width": 10**6}},
        {"image_std": [0.5, 0.0, 0.5]},
        *([{"image_mean": None}] if HAS_TRANSFORMERS_5 else []),  # which went on without it
        {"image_mean": [0.5]},
        {"rescale_factor": {}},
        {"rescale_factor": float("nan")},
    ],
    "tokenizer.json": [{"model": {}}, {"pre_tokenizer": {"type": 3}}, {"truncation": {}}, {"added_tokens": 1}],
    "tokenizer_config.json": [{"pad_token": []}, {"model_max_length": "x"}, {"unk_token": {}}],
}


@pytest.mark.parametrize(("name", "change"), [(name, change) for name, changes in WRONG.items() for change in changes])
def test_values_that_cannot_be_used_are_one_sentence(folder, name, change):
    values = json.loads((folder / name).read_text(encoding="utf-8"))
    (folder / name).write_text(json.dumps(values | change), encoding="utf-8")
    message = error_of(folder)
    assert str(folder) in message and "\n" not in message


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), share=st.floats(0, 0.999), bit=st.integers(0, 7), is_cut=st.booleans())
def test_any_flipped_bit_or_cut_is_an_error_or_a_model(folder, name, share, bit, is_cut):
    path = folder / name
    data = path.read_bytes()
    place = int(share * min(len(data), 12_000))
    changed = bytearray(data[:place] if is_cut else data)
    if not is_cut:
        changed[place] ^= 1 << bit
    path.write_bytes(changed)
    try:
        use(folder)
    except PerPEFTError as error:
        assert str(folder) in str(error)
    finally:
        path.write_bytes(data)


def test_a_tokenizer_of_more_words_than_the_model_is_refused(folder):
    values = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    values["model"]["vocab"]["red"] = 129
    (folder / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    processor = Processor.from_pretrained(folder)
    with pytest.raises(PerPEFTError, match="clip: the tokenizer makes the token 129, and the encoder has 129 words"):
        processor.text(["a cup", "a red cup"])


def test_panics_are_errors_and_interruptions_stay(folder):
    class Panic(BaseException):
        pass

    with pytest.raises(
        PerPEFTError, match=r"the tokenizer in .*clip cannot be read: look at tokenizer.json .*Panic: x"
    ):
        with loading("tokenizer", str(folder), "text_encoder"):
            raise Panic("x")
    with pytest.raises(KeyboardInterrupt), loading("tokenizer", str(folder), "text_encoder"):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "index", [b"", b"[]", b'{"weight_map": {"a": "../../secret.bin"}}', b'{"weight_map": {"a": 1}}']
)
def test_an_index_of_weights_that_says_nothing(folder, index):
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(PerPEFTError, match=r"model.safetensors.index.json"):
        weights_fingerprint(locate_foundation(folder), "text")


def test_nothing_is_left_of_a_cache_whose_encoder_is_damaged(folder, tmp_path):
    content = tiny.write_shop(tmp_path / "shop", 4)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])
    settings_ = HiddenStateSettings(str(folder), (0, 1), max_length=16, device="cpu")
    with pytest.raises(PerPEFTError, match="model.safetensors is damaged"):
        HiddenStateCache.open_or_build(
            load(content, fields=("title",)), "title", settings_, tmp_path / "cache", show_progress=False
        )
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
