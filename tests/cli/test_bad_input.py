"""Bad input through the command line: one clear error, exit status 2, and nothing half-written left behind."""

import errno
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from recbole_perpeft.cli.main import main
from recbole_perpeft.store.inputs import CHUNK_ROWS
from recbole_perpeft.store.rows import RowFiles
from recbole_perpeft.store.table import Manifest

SETTINGS = {
    "epochs": 1,
    "show_progress": False,
    "use_gpu": False,
    "topk": [5, 10],
    "valid_metric": "NDCG@10",
}
PERPEFT = SETTINGS | {"model": "PerPEFT", "epochs_global": 1, "n_groups": 2, "min_group_size": 1}


class Shop:
    """A copy of the data in a folder of its own, and the command line on it."""

    def __init__(self, root, capsys):
        self.root, self.capsys = root, capsys
        self.data = root / "data" / "aspects"
        self.cache = root / "cache"
        self.log = self.data / "aspects.inter"
        self.items = self.data / "aspects.item"

    def words(self, **settings):
        places = {"data_path": self.data.parent, "cache_folder": self.cache, "runs_folder": self.root / "runs"}
        return [f"--{key}={value}" for key, value in (PERPEFT | places | settings).items()]

    def main(self, *words):
        """Exit status, and what was printed to the standard output and error."""
        status = main(words)
        printed = self.capsys.readouterr()
        return status, printed.out, printed.err

    def run(self, **settings):
        """The folder of a run that succeeds."""
        status, out, err = self.main(*self.words(**settings))
        assert status == 0, err
        return Path(out.split("run folder: ")[1].strip())

    def fails(self, *parts, words=None, **settings):
        """The error of a run that fails; it must hold all `parts`."""
        status, _, err = self.main(*(words or self.words(**settings)))
        assert status == 2, err
        return self.check_error(err, parts)

    def check_error(self, err, parts):
        assert "Traceback" not in err
        assert len(re.findall("^error: ", err, re.MULTILINE)) == 1
        message = err[err.index("error: ") :]
        for part in parts:
            assert str(part) in message
        self.check_nothing_half_written()
        return message

    def check_nothing_half_written(self):
        names = [str(path.relative_to(self.root)) for path in self.root.rglob("*")]
        assert not [name for name in names if re.search(r"(^|/)\.|\.draft$|\.partial$|\.outdated$", name)]

    def caches(self):
        return [path.parent for path in self.cache.glob("*/manifest.json")]

    def edit(self, file, change):
        """Replace the lines of a file by `change(lines)`."""
        lines = file.read_bytes().removesuffix(b"\n").split(b"\n")
        file.write_bytes(b"\n".join(change(lines)) + b"\n")

    def edit_line(self, file, number, change):
        """Replace one line, counted from 1 as in messages."""
        self.edit(file, lambda lines: [*lines[: number - 1], change(lines[number - 1]), *lines[number:]])

    def item_of_line(self, number):
        return self.items.read_text().splitlines()[number - 1].split("\t")[0]


@pytest.fixture
def shop(tiny_aspects, tmp_path, capsys):
    shutil.copytree(tiny_aspects, tmp_path / "data" / "aspects")
    return Shop(tmp_path, capsys)


# Images and titles


def test_a_missing_image_folder(shop):
    shutil.rmtree(shop.data / "images")
    shop.fails(shop.data / "images", "32 items", "--missing_content=blank")


def test_an_image_folder_that_is_a_file(shop):
    shutil.rmtree(shop.data / "images")
    (shop.data / "images").write_text("not a folder")
    shop.fails(shop.data / "images", "folders of images are missing", "--missing_content=blank")


def test_an_image_folder_that_may_not_be_listed(shop, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("recbole_perpeft.data.content.os.scandir", refuse)
    shop.fails(shop.data / "images", "Permission denied")


def truncated_jpeg(png):
    jpeg = png.with_suffix(".jpg")
    Image.open(png).convert("RGB").save(jpeg)
    jpeg.write_bytes(jpeg.read_bytes()[:-200])
    png.unlink()


def text_named_jpg(png):
    png.with_suffix(".jpg").write_text("this is no image")
    png.unlink()


def unreadable(png):
    png.unlink()
    png.symlink_to("/proc/self/mem")


@pytest.mark.parametrize(
    ("spoil", "suffix", "reason"),
    [
        (truncated_jpeg, "jpg", "truncated or damaged"),
        (text_named_jpg, "jpg", "not an image"),
        (lambda png: png.write_bytes(b""), "png", "the file is empty"),
        (unreadable, "png", "cannot be read"),
    ],
)
def test_an_image_that_cannot_be_used(shop, spoil, suffix, reason):
    item = shop.item_of_line(5)
    image = shop.data / "images" / f"{item}.png"
    good = image.read_bytes()
    spoil(image)
    message = shop.fails(item, f"images/{item}.{suffix}", reason, "--missing_content=blank")
    assert shop.fails() == message, "what was processed is not taken for good by the next run"
    (shop.data / "images" / f"{item}.{suffix}").unlink()
    image.write_bytes(good)
    assert shop.run().is_dir()


def test_an_image_path_that_leaves_the_folder(shop):
    item = shop.item_of_line(2)
    for path in (b"../../../secret.png", b"/etc/passwd", b"images/../../x.png"):
        shop.edit(shop.items, lambda lines: [line.split(b"\timage")[0] for line in lines])

        def with_image(lines, path=path):
            return [lines[0] + b"\timage:token", lines[1] + b"\t" + path, *(line + b"\t" for line in lines[2:])]

        original = shop.items.read_bytes()
        shop.edit(shop.items, with_image)
        shop.fails(item, path.decode(), "leave the folder")
        shop.items.write_bytes(original)


def test_an_item_id_that_is_a_path_reads_nothing_outside(shop):
    item = shop.item_of_line(2)
    for file in (shop.items, shop.log):
        file.write_text(file.read_text().replace(item, f"../{item}"))
    (shop.data / "images" / f"{item}.png").rename(shop.data / f"{item}.png")
    shop.fails(f"'../{item}'", "items have no image")


def test_an_empty_title(shop):
    shop.edit_line(shop.items, 4, lambda line: line.split(b"\t")[0] + b"\t ")
    shop.fails(shop.items, "titles are empty", shop.item_of_line(4), "--missing_content=blank")


def test_a_title_that_is_not_utf8(shop):
    shop.edit_line(shop.items, 4, lambda line: line + b"\xff\xfe")
    shop.fails(shop.items, "not UTF-8", "line 4")


def test_a_duplicate_item(shop):
    shop.edit(shop.items, lambda lines: [*lines, lines[3]])
    shop.fails(shop.items, shop.item_of_line(4), "lines 4 and 34", "Mend the data")


def test_an_item_without_a_line(shop):
    item = shop.item_of_line(4)
    shop.edit(shop.items, lambda lines: lines[:3] + lines[4:])
    shop.fails(shop.items, item, "not in the item file")


# The log


@pytest.mark.parametrize(
    ("header", "parts"),
    [
        (b"user_id:token\titem_id\ttimestamp:float", ("line 1", "'item_id' is not name:type")),
        (b"user_id:token\titem_id:token\ttimestamp:date", ("line 1", "timestamp:date")),
        (b"user_id:token\titem_id:token\ttimestamp:token", ("line 1", "timestamp:float")),
        (b"user_id:float\titem_id:token\ttimestamp:float", ("aspects.inter", "user_id")),
        (b"user_id:token\tproduct:token\ttimestamp:float", ("no column item_id", "product")),
        (b"", ("line 1", "name:type")),
    ],
)
def test_a_broken_header(shop, header, parts):
    shop.edit_line(shop.log, 1, lambda line: header)
    shop.fails(shop.data, *parts)


@pytest.mark.parametrize(
    ("columns", "parts"),
    [
        (["user_id", "item_id", "timestamp", "item_idd"], ("no column item_idd", "Did you mean item_id?")),
        (["user_id"], ("column item_id is not loaded", "load_col")),
        (["user_id", "item_id"], ("no column 'timestamp'", "load_col")),
    ],
)
def test_an_unknown_or_missing_column_in_load_col(shop, columns, parts):
    shop.fails("aspects.inter", *parts, load_col={"inter": columns})


def test_load_col_that_is_no_mapping(shop):
    shop.fails("load_col is 5: it must be a mapping", load_col=5)


def test_a_title_column_that_is_missing(shop):
    shop.edit_line(shop.items, 1, lambda line: b"item_id:token\tname:token_seq")
    shop.fails(shop.items, "line 1", "'title' is missing")


@pytest.mark.parametrize("text", [b"", b"\n", b"user_id:token\titem_id:token\ttimestamp:float\n"])
def test_a_log_without_interactions(shop, text):
    shop.log.write_bytes(text)
    shop.fails(shop.log)


def test_a_filter_that_leaves_no_users(shop):
    shop.fails(shop.data, "filtering", user_inter_num_interval="[100,inf)")


def test_a_user_with_one_interaction(shop):
    shop.edit(shop.log, lambda lines: [*lines, b"LONELY\t" + lines[1].split(b"\t")[1] + b"\t5"])
    shop.fails("aspects.inter", "LONELY", "single interaction", '--user_inter_num_interval="[2,inf)"')


@pytest.mark.parametrize("time", [b"", b"nan", b"inf", b"-inf"])
@pytest.mark.parametrize("model", ["PerPEFT", "SASRec"])
def test_a_time_that_is_not_finite(shop, time, model):
    shop.edit_line(shop.log, 8, lambda line: b"\t".join([*line.split(b"\t")[:2], time]))
    own = {} if model == "PerPEFT" else {"words": sasrec_words(shop)}
    shop.fails(shop.log, "no finite timestamp", "line 8", **own)


@pytest.mark.parametrize(("column", "field"), [(0, "user_id"), (1, "item_id")])
@pytest.mark.parametrize("token", [b"", b"NA"])
def test_a_row_without_user_or_item(shop, column, field, token):
    def change(line):
        cells = line.split(b"\t")
        cells[column] = token
        return b"\t".join(cells)

    shop.edit_line(shop.log, 8, change)
    shop.fails(shop.log, f"no {field}", "line 8")


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.rsplit(b"\t", 1)[0],
        lambda line: b'"' + line,
        lambda line: line.rsplit(b"\t", 1)[0] + b"\tyesterday",
        lambda line: line + b"\xff\xfe",
    ],
)
def test_a_broken_row(shop, change):
    shop.edit_line(shop.log, 8, change)
    shop.fails(shop.data)


def test_a_half_made_data_set(shop):
    shop.log.unlink()
    shop.fails(shop.log, "is missing", "deleted")


def test_what_a_killed_first_use_leaves_is_in_nobodys_way(shop, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    shutil.rmtree(shop.data)
    with monkeypatch.context() as patch:
        patch.setattr("recbole_perpeft.data.aspects.catalogue.product_image", die)
        assert main(shop.words()) == 130
    assert not shop.data.exists()
    assert not list(shop.data.parent.iterdir())


# Settings


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", "nan"),
        ("learning_rate", "inf"),
        ("learning_rate", "1e999"),
        ("learning_rate", -1),
        ("learning_rate", "fast"),
        ("weight_decay", "nan"),
        ("weight_decay", -0.1),
        ("id_embedding_reg", "nan"),
        ("id_embedding_reg", -1),
        ("train_batch_size", -5),
        ("train_batch_size", 0),
        ("eval_batch_size", 0),
        ("epochs", 0),
        ("epochs", -1),
        ("epochs", 1.5),
        ("epochs", "many"),
        ("epochs_global", -1),
        ("eval_step", -1),
        ("stopping_step", -1),
        ("seed", -1),
        ("seed", "dice"),
        ("worker", -1),
        ("MAX_ITEM_LIST_LENGTH", 0),
        ("topk", 0),
        ("metrics", "[Luck]"),
        ("valid_metric", "NDCG@7"),
        ("learner", "adamm"),
        ("enable_amp", 3),
        ("show_progress", "perhaps"),
        ("clip_grad_norm", 5),
        ("mask_history", "some"),
        ("dropout_prob", 2),
        ("n_heads", 5),
        ("group_negative_ratio", "nan"),
        ("grouping", "astrology"),
        ("missing_content", "ignore"),
        ("dataset", "../aspects"),
        ("dataset", "a/b"),
        ("foundation_model", "/nowhere/clip"),
        ("max_text_length", 0),
        ("loss_decimal_place", -1),
        ("val_interval", 3),
        ("encoding", "klingon"),
        ("runs_folder", ""),
        ("cache_folder", ""),
    ],
)
def test_a_value_that_is_not_possible(shop, key, value):
    message = shop.fails(**{key: value})
    assert key in message or f"'{value.strip('[]')}'" in message


def test_more_groups_than_users(shop):
    shop.fails("n_groups is 41", "40 users", "lower n_groups", n_groups=41)


def test_an_unknown_peft_type(shop):
    shop.fails("peft_type: 'lorra' is unknown", "did you mean lora?", peft_type="lorra")
    assert not shop.cache.exists()


def test_target_modules_that_match_nothing(shop):
    shop.fails("peft_config", "no_such_layer", "q_proj", peft_config={"target_modules": ["no_such_layer"]})
    assert not shop.cache.exists()


def test_an_unknown_key_of_a_peft_method(shop):
    shop.fails("rnak", peft_config={"rnak": 3})


@pytest.mark.parametrize(("flag", "meant"), [("n_group", "n_groups"), ("leaning_rate", "learning_rate")])
def test_an_unknown_flag_close_to_a_known_one(shop, flag, meant):
    shop.fails(f"'{flag}'", f"did you mean '{meant}'?", **{flag: 1})
    assert not (shop.root / "runs").exists()


def test_settings_files_that_cannot_be_used(shop, tmp_path):
    evil, mark = tmp_path / "evil.yaml", tmp_path / "mark"
    evil.write_text(f"a: !!python/object/apply:os.system ['touch {mark}']\n")
    shop.fails(evil, "not valid YAML", config_files=evil)
    assert not mark.exists()
    broken = tmp_path / "broken.yaml"
    broken.write_text("epochs: [1\n")
    shop.fails(broken, "not valid YAML", config_files=broken)
    shop.fails("missing.yaml", "No such file", config_files=tmp_path / "missing.yaml")
    shop.fails(tmp_path, config_files=tmp_path)


@pytest.mark.parametrize("key", ["data_path", "cache_folder", "runs_folder"])
def test_a_folder_below_a_file(shop, key):
    (shop.root / "file").touch()
    shop.fails(shop.root / "file", **{key: shop.root / "file" / "x"})


# The cache


def cut_in_half(file):
    os.truncate(file, file.stat().st_size // 2)


def contents(folder):
    """What the files of a cache hold, but when they were written."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["stamps"].clear()
    return {file.name: file.read_bytes() for file in folder.glob("*.npy")} | {"manifest.json": manifest}


@pytest.mark.parametrize("name", ["pixel_values.npy", "input_ids.npy", "image_digest.npy", "manifest.json"])
def test_a_cache_cut_in_half_is_built_again(shop, caplog, name):
    before = shop.run()
    (folder,) = shop.caches()
    whole = contents(folder)
    cut_in_half(folder / name)
    after = shop.run()
    assert "computed again" in caplog.text and name in caplog.text
    assert contents(folder) == whole
    assert results(after)["test_result"] == results(before)["test_result"]
    shop.check_nothing_half_written()


def test_frozen_content_vectors_cut_in_half_are_computed_again(shop, caplog):
    before = shop.run(peft_type="none")
    (file,) = shop.cache.glob("content-vectors-*.npy")
    whole = file.read_bytes()
    cut_in_half(file)
    after = shop.run(peft_type="none")
    assert "computed again" in caplog.text and file.name in caplog.text
    assert file.read_bytes() == whole
    assert results(after)["test_result"] == results(before)["test_result"]


def test_a_cache_of_another_processor(shop):
    shop.run()
    (mine,) = shop.caches()
    shop.run(max_text_length=8)
    (other,) = set(shop.caches()) - {mine}
    shutil.rmtree(mine)
    other.rename(mine)
    shop.fails(mine, "cache of another processor", "text_length", "delete this one")
    shutil.rmtree(mine)
    assert shop.run().is_dir()


def disk_full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def disk_full_at_the_sync(monkeypatch):
    monkeypatch.setattr(RowFiles, "sync", disk_full)


def disk_full_at_the_reservation(monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", disk_full)


def disk_full_at_the_second_array(monkeypatch):
    write, rows_written = RowFiles.write, []

    def write_a_little(files, start, rows):
        if rows_written:
            disk_full()
        rows_written.append(start)
        write(files, start, dict(list(rows.items())[:1]))
        disk_full()

    monkeypatch.setattr(RowFiles, "write", write_a_little)


def disk_full_at_the_manifest(monkeypatch):
    monkeypatch.setattr(Manifest, "write", disk_full)


@pytest.mark.parametrize(
    "fill",
    [
        disk_full_at_the_reservation,
        disk_full_at_the_second_array,
        disk_full_at_the_sync,
        disk_full_at_the_manifest,
    ],
)
def test_a_full_disk_while_caching(shop, monkeypatch, fill):
    with monkeypatch.context() as patch:
        fill(patch)
        shop.fails(shop.cache, "the disk is full", "MiB", "Free space")
        assert not shop.caches()
    shop.run()
    assert len(shop.caches()) == 1


def test_a_full_disk_while_content_vectors_are_written(shop, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("recbole_perpeft.store.streamed.np.lib.format.write_array_header_1_0", disk_full)
        shop.fails(shop.cache, peft_type="none")
    assert not list(shop.cache.glob("content-vectors-*"))


@pytest.mark.parametrize("name", ["last.pth", "metrics.csv", "test_ranks.parquet"])
def test_a_full_disk_while_a_run_writes(shop, monkeypatch, name):
    replace = Path.replace

    def refuse(path, target):
        if Path(target).name == name:
            disk_full()
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        shop.fails(name, "No space left", run_folder=shop.root / "run")
    assert shop.main(f"--resume={shop.root / 'run'}")[0] == 0


def test_chunks_of_a_killed_build_are_checked(shop, monkeypatch):
    """What a killed build has left is not believed: a chunk whose bytes are not those of its journal is made anew."""
    shop.run()
    (folder,) = shop.caches()
    whole = contents(folder)
    shutil.rmtree(folder)
    with monkeypatch.context() as patch:
        patch.setattr(RowFiles, "sync", lambda files: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(shop.words()) == 130
    (draft,) = shop.cache.glob(".*.draft")
    pixels = draft / "pixel_values.npy"
    pixels.write_bytes(pixels.read_bytes()[:-1000] + bytes(1000))
    shop.run()
    assert contents(folder) == whole
    assert CHUNK_ROWS >= 32


# Checkpoints


def results(folder):
    return json.loads((folder / "result.json").read_text())


def sasrec_words(shop, **more):
    places = {"data_path": shop.data.parent, "runs_folder": shop.root / "runs", "model": "SASRec"}
    return [f"--{key}={value}" for key, value in (SETTINGS | places | more).items()]


@pytest.fixture
def sasrec_run(shop):
    _, out, _ = shop.main(*sasrec_words(shop))
    return Path(out.split("run folder: ")[1].strip())


def test_a_checkpoint_of_another_model(shop, sasrec_run):
    shop.fails(sasrec_run, "SASRec, not PerPEFT", words=[f"--resume={sasrec_run}", "--model=PerPEFT"])
    mine = shop.run()
    shutil.copy(sasrec_run / "last.pth", mine / "last.pth")
    shop.fails(mine / "last.pth", "a checkpoint of SASRec, not of PerPEFT", words=[f"--resume={mine}"])
    shop.fails("best.pth", "last.pth", words=[f"--resume={mine / 'best.pth'}"])


def test_lists_from_a_checkpoint_of_another_model(shop, sasrec_run):
    assert main(["recommend", "--model_file", str(sasrec_run / "best.pth"), "--users", "x"]) == 2
    shop.check_error(shop.capsys.readouterr().err, [sasrec_run / "best.pth", "SASRec", "PerPEFT"])


class Malice:
    """Runs code where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def checkpoints_that_are_none(mark):
    good = Path("last.pth")
    yield lambda path: path.write_bytes(pickle.dumps(Malice(mark), protocol=2))
    yield lambda path: torch.save({"format": "recbole_perpeft checkpoint", "model": Malice(mark)}, path)
    yield lambda path: torch.save({"format": "recbole_perpeft checkpoint"}, path)
    yield lambda path: torch.save([1, 2, 3], path)
    yield lambda path: path.write_bytes(b"")
    yield lambda path: path.write_bytes(b"PK\x03\x04 not really")
    yield lambda path: path.write_text("hello\n")
    yield lambda path: cut_in_half(path.with_name(good.name))


def test_files_that_are_no_checkpoints_are_named_and_run_no_code(shop):
    folder, mark = shop.run(), shop.root / "mark"
    last, whole = folder / "last.pth", (folder / "last.pth").read_bytes()
    for spoil in checkpoints_that_are_none(mark):
        last.write_bytes(whole)
        spoil(last)
        shop.fails(last, "not a checkpoint of recbole_perpeft", words=[f"--resume={folder}"])
        assert main(["recommend", "--model_file", str(last), "--users", "x"]) == 2
        shop.check_error(shop.capsys.readouterr().err, [last])
        assert not mark.exists()


def test_a_damaged_checkpoint_is_named_wherever_it_is_cut(shop):
    folder = shop.run()
    last, whole = folder / "last.pth", (folder / "last.pth").read_bytes()
    for size in np.random.default_rng(3).integers(1, len(whole), 10):
        last.write_bytes(whole[:size])
        shop.fails(last, words=[f"--resume={folder}"])


def swap_two_items(lines):
    first, second = sorted({line.split(b"\t")[1] for line in lines[1:]})[:2]
    names = {first: second, second: first}
    rows = [line.split(b"\t") for line in lines[1:]]
    return [lines[0], *(b"\t".join([user, names.get(item, item), time]) for user, item, time in rows)]


def add_an_interaction(lines):
    user, item, _ = lines[1].split(b"\t")
    return [*lines, b"\t".join([user, item, b"2000000000"])]


@pytest.mark.parametrize("change", [swap_two_items, add_an_interaction, lambda lines: [lines[0], *lines[:0:-1]]])
@pytest.mark.parametrize("model", ["PerPEFT", "SASRec"])
def test_data_that_changed_before_a_run_is_resumed(shop, sasrec_run, change, model):
    folder = shop.run() if model == "PerPEFT" else sasrec_run
    shop.edit(shop.log, change)
    shop.fails(folder, "other data", shop.log, words=[f"--resume={folder}", "--epochs=2"])


def test_lists_need_the_ids_of_the_training(shop):
    folder = shop.run()
    user = shop.log.read_text().splitlines()[1].split("\t")[0]
    words = ["recommend", "--model_file", str(folder), "--users", user, "--k", "3"]
    shop.edit(shop.log, add_an_interaction)
    assert main(words) == 0, "new interactions of known users and items are welcome"
    assert main([*words[:-1], "0"]) == 2
    shop.capsys.readouterr()
    shop.edit(shop.log, swap_two_items)
    assert main(words) == 2
    shop.check_error(shop.capsys.readouterr().err, [folder, "other data"])


def test_run_folders_that_cannot_be_resumed(shop):
    shop.fails("there is no", words=[f"--resume={shop.root / 'nowhere'}"])
    folder = shop.root / "run"
    folder.mkdir()
    shop.fails(folder, "config.yaml", words=[f"--resume={folder}"])
    (folder / "config.yaml").write_text(yaml.safe_dump({"epochs": 1}))
    shop.fails(folder / "config.yaml", "no model", words=[f"--resume={folder}"])
    shop.fails(folder, "--resume=", run_folder=folder)
    other = shop.root / "photos"
    other.mkdir()
    (other / "me.jpg").touch()
    shop.fails(other, "not empty", run_folder=other)
