import json
import logging
import os
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoTokenizer

from recbole_perpeft.cli.main import main
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.pretrained import families
from recbole_perpeft.store import table
from recbole_perpeft.store.rows import RowFiles
from recbole_perpeft.store.states import HiddenStateCache, HiddenStateSettings
from support import tiny_encoders as tiny
from support.state_caches import N_ITEMS, all_rows, files_of, load, open_or_build


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


def test_what_a_kill_has_left_in_a_finished_cache_goes_with_the_next_opening(shop, bert, monkeypatch):
    def killed(folder, names):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(table, "_remove_leftovers", killed)
        open_or_build(shop, bert)
    (folder,) = shop.parent.glob("**/*-states")
    assert {"state_0.npy", "journal.jsonl", "manifest.json"} <= {path.name for path in folder.iterdir()}
    cache = open_or_build(shop, bert)
    assert not {"state_0.npy", "journal.jsonl"} & set(files_of(cache)) and not {*folder.glob("journal*")}


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


def test_states_know_how_a_plugin_reads_the_encoder(shop, encoders, monkeypatch, caplog):
    monkeypatch.setattr(families, "_added", [])
    settings = HiddenStateSettings(encoders["llama"], (), max_length=8, dtype="float32", batch_size=3)
    mine = families.Family(
        "mine", "text", blocks="layers", norm=None, pooling="mean", model_types=frozenset({"llama"})
    )
    found = []
    for family in mine, replace(mine, norm="norm", norms_last_state=True):
        families.register_family(family)
        found.append(open_or_build(shop, settings).final(torch.arange(N_ITEMS)))
    assert "how a plugin says that the encoder is read" in caplog.text
    assert not torch.allclose(*found, atol=1e-3)


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
    assert cache.n_bytes() >= N_ITEMS * 3 * 16 * 4
    assert cache.states(torch.tensor([], dtype=torch.long)).shape == (0, 3, 16)


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


@pytest.mark.parametrize(
    "change", [{"origin": float("inf")}, {"origin": {}}, {"is_first_shared": None}, {"width": "x"}], ids=str
)
def test_a_manifest_of_other_types_is_made_anew(shop, bert, change):
    cache = open_or_build(shop, bert)
    expected = cache.states(all_rows(cache))
    manifest = cache.folder / "manifest.json"
    content = json.loads(manifest.read_text())
    content |= change
    manifest.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
    assert torch.equal(open_or_build(shop, bert).states(all_rows(cache)), expected)


def test_a_processor_of_another_model_is_told(tmp_path, encoders):
    folder = shutil.copytree(encoders["vit"], tmp_path / "vit")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"size": {"height": 4, "width": 4}}))
    shop = tiny.write_shop(tmp_path / "shop", 3, images=True)
    with pytest.raises(PerPEFTError, match="vit: the model cannot read what its own processor makes"):
        open_or_build(shop, HiddenStateSettings(str(folder), (1,), dtype="float32"), "image")


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


@pytest.mark.parametrize("value", [np.nan, 1.0])
def test_a_stored_value_that_was_changed(shop, bert, computed, value):
    cache = open_or_build(shop, bert)
    whole = files_of(cache)
    array = np.load(cache.folder / "states.npy", mmap_mode="r+")
    array[17, 1, 3] = value
    array.flush()
    with pytest.raises(PerPEFTError, match=r"states\.npy: rows 16 to 31 were changed after they were written"):
        HiddenStateCache.open(cache.folder, load(shop), "title", bert)
    computed.clear()
    assert files_of(open_or_build(shop, bert)) == whole and computed == [1]


@pytest.mark.parametrize("value", [np.nan, 1.0])
def test_a_shared_state_that_was_changed(shop, bert, value):
    cache = open_or_build(shop, bert)
    whole = files_of(cache)
    np.save(cache.folder / "shared_state_0.npy", np.full(16, value, dtype=np.float32))
    with pytest.raises(PerPEFTError, match=r"shared_state_0\.npy: was changed after it was written"):
        HiddenStateCache.open(cache.folder, load(shop), "title", bert)
    assert files_of(open_or_build(shop, bert)) == whole


def test_an_interrupted_build_goes_on(shop, bert, computed, monkeypatch):
    whole = files_of(open_or_build(shop, bert))
    other = tiny.write_shop(shop.parent / "other" / "shop", N_ITEMS)
    write = RowFiles.write

    def stop(files, start, rows):
        if start == 32:
            raise KeyboardInterrupt
        write(files, start, rows)

    with monkeypatch.context() as interrupted:
        interrupted.setattr(RowFiles, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            open_or_build(other, bert)
    computed.clear()
    assert files_of(open_or_build(other, bert)) == whole and computed == [2]


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
