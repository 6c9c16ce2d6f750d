"""Whole conversions: equal files from equal input, whole folders or none, tables, the command line."""

import json
import logging
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from recbole_perpeft.cli.convert import SOURCES
from recbole_perpeft.cli.main import main
from recbole_perpeft.convert import conversion
from recbole_perpeft.convert.conversion import ConversionSettings, convert, summary
from recbole_perpeft.convert.filters import FilterSettings
from recbole_perpeft.convert.sources.table import TableColumns, TableSource
from recbole_perpeft.core.digest import file_hash
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.content import ItemContent


@pytest.fixture
def shop(tmp_path, make_csv, make_image):
    """A folder with `log.csv`, `items.csv` and `photos/`; the photo of c is damaged, d has none."""
    folder = tmp_path / "shop"
    (folder / "photos").mkdir(parents=True)
    log = [("u2", "b", 4, 9), ("u1", "a", 5, 3), ("u2", "a", 1.5, 2), ("u1", "c", 2, 3), ("u2", "d", 3, 5)]
    make_csv(folder / "log.csv", ["user_id", "item_id", "rating", "timestamp"], log)
    items = [("a", "A", "red", "x/1.jpg"), ("b", "", "", "2.jpg"), ("c", "C", "", "3.jpg"), ("d", "", "blue", "")]
    make_csv(folder / "items.csv", ["item_id", "title", "colour", "photo"], [*items, ("z", "Z", "", "../z.jpg")])
    (folder / "photos" / "x").mkdir()
    for at, path in enumerate(["x/1.jpg", "2.jpg"]):
        (folder / "photos" / path).write_bytes(make_image(seed=at))
    (folder / "photos" / "3.jpg").write_bytes(make_image()[:100])
    return folder


def source_of(shop):
    columns = TableColumns(rating="rating", texts=("colour",), image="photo")
    return TableSource(shop / "log.csv", shop / "items.csv", shop / "photos", columns)


def flags_of(shop, output, *more):
    return [
        "convert", "table", f"--input={shop / 'log.csv'}", f"--items={shop / 'items.csv'}",
        f"--images={shop / 'photos'}", "--image-column=photo", "--text-columns", "colour", "--rating-column=rating",
        f"--output={output}",
        "--no-progress", *more,
    ]  # fmt: skip


def test_a_conversion(shop, run, cells):
    folder, report = run(source_of(shop))
    assert (folder / "set.inter").read_text() == (
        "user_id:token\titem_id:token\ttimestamp:float\trating:float\n"
        "u2\ta\t2\t1.5\nu2\td\t5\t3\nu2\tb\t9\t4\nu1\ta\t3\t5\nu1\tc\t3\t2\n"
    )
    assert (folder / "set.item").read_text() == (
        "item_id:token\ttitle:token_seq\tcolour:token_seq\timage:token\n"
        "a\tA\tred\timages/a.jpg\nb\t\t\timages/b.jpg\nc\tC\t\t\nd\t\tblue\t\n"
    )
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [
        "a.jpg", "b.jpg", "conversion.json", "rejected_images.tsv", "set.inter", "set.item"
    ]  # fmt: skip
    ((token, problem),) = cells(folder / "rejected_images.tsv")
    assert token == "c" and problem
    assert report["data_set"] == {
        "users": 2, "items": 4, "interactions": 5, "sparsity": 0.375, "median_length": 2.5, "titles": 2, "images": 2,
        "share_without_title_and_image": 0.25,
    }  # fmt: skip
    assert report == json.loads((folder / "conversion.json").read_text())
    assert report["output"]["set.inter"] == file_hash(folder / "set.inter")
    assert report["input"] == [
        {"file": name, "sha256": file_hash(shop / name)} for name in ("log.csv", "items.csv")
    ]  # fmt: skip
    assert ItemContent.load(folder, "set", list("abcd"), "blank").titles == ["A", "", "C", ""]


def test_equal_input_gives_equal_files(shop, tmp_path, files_below, capsys):
    for place in ("one", "two"):
        assert main(flags_of(shop, tmp_path / place / "set", "--workers=2")) == 0
    one, two = files_below(tmp_path / "one"), files_below(tmp_path / "two")
    assert one == two and len(one) == 6
    assert str(tmp_path) not in one["set/conversion.json"].decode()
    assert main(flags_of(shop, tmp_path / "two" / "set", "--overwrite", "--max-side=16")) == 0
    other = files_below(tmp_path / "two")
    changed = {name for name in one if one[name] != other[name]}
    assert changed == {"set/conversion.json", "set/images/a.jpg", "set/images/b.jpg"}
    assert not [path for path in (tmp_path / "two").iterdir() if path.name != "set"]


def test_the_tables_that_are_printed(shop, tmp_path, capsys):
    assert main(flags_of(shop, tmp_path / "set", "--min-len=3")) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["source", "2", "4", "5"] in printed and ["min_len", "3", "1", "3", "3"] in printed
    assert ["share", "without", "title", "and", "image", "0.333333"] in printed


def test_a_filter_that_leaves_nothing_is_an_error(shop, run, tmp_path):
    with pytest.raises(PerPEFTError, match="k_core 9 leaves no interactions of 5; weaken it"):
        run(source_of(shop), k_core=9)
    assert not list((tmp_path / "out").glob("*"))


def test_errors_go_to_the_user_without_a_traceback(shop, tmp_path, capsys):
    flags = flags_of(shop, tmp_path / "set")
    (shop / "log.csv").write_text("user_id,item_id,rating\nu,a,5\nu,b,high\n")
    assert main(flags) == 2
    assert capsys.readouterr().err.strip().endswith("log.csv, line 3: the rating 'high' is not a finite number")
    assert not list(tmp_path.glob("*set*"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"log.csv": "user,item_id\n"}, "log.csv, line 1: no column 'user_id' among user, item_id"),
        ({"log.csv": ""}, "log.csv is empty"),
        ({"log.csv": "user_id,item_id,rating\n"}, "the source has no interactions"),
        ({"log.csv": "user_id,item_id,timestamp,rating\nu,a,x,1\n"}, "line 2: the time 'x' is neither"),
        (
            {"items.csv": "item_id,title,colour,photo\na,,,\na,,,\n"},
            "items.csv, line 3: the item 'a' had a row before",
        ),
        ({"items.csv": "item_id,title,colour,photo\na,,,../x\n"}, "items.csv, line 2: the path '../x' leaves"),
        ({"items.csv": "item_id,title,colour,photo\na,,,/x\n"}, "items.csv, line 2: the path '/x' leaves"),
        ({"items.csv": "item_id,colour,photo\n"}, "items.csv, line 1: no column 'title'"),
    ],
)
def test_wrong_tables_are_errors_and_leave_nothing(shop, run, tmp_path, change, problem):
    for name, content in change.items():
        (shop / name).write_text(content)
    with pytest.raises(PerPEFTError, match=problem):
        run(source_of(shop))
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("log.txt", b"", "the suffix tells the format"),
        ("log.parquet", b"no parquet", "not a parquet file"),
        ("log.jsonl", b'{"user_id": true, "item_id": "a"}\n', "line 1: True cannot be an id"),
        ("log.jsonl", b'\n{"user_id": 1.5, "item_id": "a"}\n', "line 2: 1.5 cannot be an id"),
        ("log.jsonl", b'{"user_id": "u"}\n', "line 1: None cannot be an id"),
        ("log.jsonl", b'{"user_id": "\\ud83d", "item_id": 1}\n', "is not Unicode"),
        ("log.jsonl", b"[]\n", "line 1: not a JSON object"),
    ],
)
def test_other_formats_name_what_is_wrong(tmp_path, run, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PerPEFTError, match=problem):
        run(TableSource(tmp_path / name))


def test_parquet_names_the_missing_column(tmp_path, run):
    pq.write_table(pa.table({"user": ["u"]}), tmp_path / "log.parquet")
    with pytest.raises(PerPEFTError, match="no column 'user_id' among user"):
        run(TableSource(tmp_path / "log.parquet"))


def test_images_by_item_id_and_items_by_another_name(shop, run, make_csv, make_image, cells):
    make_csv(shop / "items.tsv", ["sku", "name"], [("a", "A"), ("b", 'B "big"')], delimiter="\t")
    (shop / "photos" / "b.png").write_bytes(make_image(kind="PNG"))
    columns = TableColumns(item_of_items="sku", title="name")
    folder, _ = run(TableSource(shop / "log.csv", shop / "items.tsv", shop / "photos", columns))
    assert cells(folder / "set.item") == [
        ["a", "A", ""], ["b", 'B "big"', "images/b.png"], ["c", "", ""], ["d", "", ""]
    ]  # fmt: skip


def test_a_column_of_images_needs_a_folder(shop):
    with pytest.raises(PerPEFTError, match="--image_column needs"):
        TableSource(shop / "log.csv", columns=TableColumns(image="photo"))


def test_folders_are_replaced_only_on_demand(shop, tmp_path, run, files_below):
    folder, _ = run(source_of(shop))
    before = files_below(folder)
    with pytest.raises(PerPEFTError, match="exists already: pass --overwrite"):
        run(source_of(shop))
    (shop / "log.csv").write_text("broken")
    with pytest.raises(PerPEFTError):
        run(source_of(shop), overwrite=True)
    assert files_below(folder) == before
    (folder / "conversion.json").unlink()
    with pytest.raises(PerPEFTError, match="was not written by a conversion"):
        run(source_of(shop), overwrite=True)


def test_a_failing_exchange_keeps_the_earlier_folder(shop, run, files_below, monkeypatch):
    folder, _ = run(source_of(shop))
    before = files_below(folder)
    rename = type(folder).rename

    def refuse(path, target):
        if path.name.endswith(".draft"):
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(type(folder), "rename", refuse)
    with pytest.raises(PerPEFTError, match="No space left on device; free space"):
        run(source_of(shop), overwrite=True)
    assert files_below(folder.parent) == {f"set/{name}": content for name, content in before.items()}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("a bug")])
def test_whatever_happens_nothing_half_written_stays(shop, run, tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(conversion, "write_report", fail)
    with pytest.raises((PerPEFTError, RuntimeError), match="No space left|a bug"):
        run(source_of(shop))
    assert not list((tmp_path / "out").glob("*"))


def test_an_interrupted_conversion_keeps_its_images(shop, run, tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("recbole_perpeft.convert.images._write_chunk", interrupt)
        assert main(flags_of(shop, tmp_path / "out" / "set")) == 130
    assert "start it again" in capsys.readouterr().err
    assert (tmp_path / "out" / ".set.draft" / ".images" / "journal.jsonl").is_file()
    run(source_of(shop))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["set"]


def test_two_conversions_to_one_folder(shop, run, tmp_path):
    (tmp_path / "out").mkdir()
    lock, taken = FileLock(tmp_path / "out" / "set.lock"), threading.Event()
    done = threading.Event()

    def hold():
        with lock:
            taken.set()
            done.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait(20)
    with pytest.raises(PerPEFTError, match="is being written by another process"):
        run(source_of(shop))
    done.set()
    thread.join()


@pytest.mark.parametrize("settings", [{"max_side": 3}, {"workers": 0}])
def test_odd_settings_are_errors(settings):
    with pytest.raises(PerPEFTError, match=next(iter(settings))):
        ConversionSettings(FilterSettings(), **settings)


@pytest.mark.parametrize("source", [SOURCES.get(name) for name in SOURCES.names()], ids=lambda source: source.name)
def test_every_source_explains_itself_and_shows_its_default_filters(source, capsys):
    assert main(["convert", source.name, "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert (source.__doc__ or "").splitlines()[0] in printed and f"0: no filter ({source.filters.k_core})" in printed


def test_a_summary_needs_no_images(shop, run):
    _, report = run(TableSource(shop / "log.csv"))
    assert "images" in summary(report) and report["data_set"]["share_without_title_and_image"] == 1


def test_the_log_tells_where_the_order_is_taken_from(tmp_path, run, make_csv, caplog):
    caplog.set_level(logging.INFO)
    make_csv(tmp_path / "log.csv", ["user_id", "item_id"], [("u", "b"), ("u", "a")])
    run(TableSource(tmp_path / "log.csv"))
    assert "the order of the rows is taken for that of time" in caplog.text


def test_convert_returns_what_it_writes(shop, tmp_path):
    report = convert(source_of(shop), tmp_path / "set", ConversionSettings(FilterSettings(), show_progress=False))
    assert json.loads((tmp_path / "set" / "conversion.json").read_text()) == report
