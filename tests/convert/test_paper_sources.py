"""The data sets of the papers, from miniature files in their formats."""

import gzip
import io
import json
import pickle
import zipfile

import numpy as np
import pytest

from recbole_perpeft.convert.source import ExpectedCounts
from recbole_perpeft.convert.sources import iisan, microlens, perpeft, vip5
from recbole_perpeft.convert.sources.iisan import IISANSource, titles_by_tab, unquoted
from recbole_perpeft.convert.sources.microlens import MicroLensSource, _texts_of
from recbole_perpeft.convert.sources.perpeft import PerPEFTSource
from recbole_perpeft.convert.sources.vip5 import VIP5Source
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.content import ItemContent


def by_user(rows):
    """Items of each user in the order of the file."""
    sequences = {}
    for user, item, *_ in rows:
        sequences.setdefault(user, []).append(item)
    return sequences


@pytest.fixture
def iisan_folder(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    long = " ".join(f"B{number % 4}" for number in range(20))
    (folder / "am_Toy_users.tsv").write_text(f"A1\tB1 B1 B2 B3 B1\nA2\tB9 B1\nA3\t{long} B5\n")
    titles = ["B1\tPipe 6&quot;", 'B2\t" Scientific"" />"', "B3", 'B5\t"Half', "B7\tunused", "B0\tzero"]
    (folder / "Toy_items.tsv").write_text("\n".join(titles) + "\n")
    return folder


def source_of(source, **arguments):
    return source.from_arguments(arguments, show_progress=False)


def test_iisan(iisan_folder, run, cells):
    folder, report = run(source_of(IISANSource, input=iisan_folder, images=None), min_len=5, keep_last=13)
    rows = cells(folder / "set.inter")
    assert by_user(rows) == {
        "A1": ["B1", "B1", "B2", "B3", "B1"],
        "A3": [f"B{number % 4}" for number in range(8, 20)] + ["B5"],
    }
    assert [row[2] for row in rows] == [*map(str, range(5)), *map(str, range(13))]
    items = dict(cells(folder / "set.item"))
    # B9 left with its user, B7 was never there.
    assert items == {"B0": "zero", "B1": "Pipe 6&quot;", "B2": 'Scientific" />', "B3": "", "B5": "''Half"}
    assert [step["interactions"] for step in report["counts"]] == [28, 26, 18]
    assert report["data_set"]["titles"] == 4 and report["data_set"]["share_without_title_and_image"] == 0.2


def test_iisan_counts_are_compared_with_the_paper(iisan_folder, run, monkeypatch, caplog):
    monkeypatch.setitem(iisan.EXPECTED, "Toy", ExpectedCounts(2, 5, 17))
    _, report = run(source_of(IISANSource, input=iisan_folder, images=None), min_len=5, keep_last=13)
    assert report["differences"] == ["17 interactions are published, 18 are found"]
    assert report["differences"][0] in caplog.text


@pytest.mark.parametrize(
    ("line", "problem"),
    [("A9", "not of the form"), ("A9\tB1  B2", "not of the form"), ("A9\ta\tb", "not of the form"),
     ("A1\tB1", "had a line before"), ("A9\tNA", "the item id 'NA'"), ("\tB1", "the user id ''")],
)  # fmt: skip
def test_iisan_names_the_damaged_line(iisan_folder, run, line, problem):
    with open(iisan_folder / "am_Toy_users.tsv", "a") as file:
        file.write(line + "\n")
    with pytest.raises(PerPEFTError, match=f"am_Toy_users.tsv, line 4: .*{problem}"):
        run(source_of(IISANSource, input=iisan_folder, images=None))


def test_iisan_titles_are_unique(tmp_path):
    (tmp_path / "x").write_text("a\tb\na\tc\n")
    with pytest.raises(PerPEFTError, match="line 2: the item 'a' had a line before"):
        titles_by_tab(tmp_path / "x")


@pytest.mark.parametrize("line", ["b Title b", 'b\t"one\ntwo"'])
def test_iisan_titles_have_one_form(tmp_path, line):
    (tmp_path / "x").write_text(f"a\tb\n{line}\n")
    with pytest.raises(PerPEFTError, match=r"line \d: not of the form item<tab>title"):
        titles_by_tab(tmp_path / "x")


@pytest.mark.parametrize(
    ("cell", "text"), [('"a ""b"""', 'a "b"'), ('"a', '"a'), ('"a" b', '"a" b'), ("a", "a"), ('""', ""), ("", "")]
)
def test_quotes_of_csv_leave_titles(cell, text):
    assert unquoted(cell) == text


def test_iisan_with_images(iisan_folder, run, cells, make_image, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for token in ("B1", "B2", "B7"):
        (images / f"{token}.jpg").write_bytes(make_image())
    folder, report = run(source_of(IISANSource, input=iisan_folder, images=images), min_len=5)
    files = {token: image for token, _, image in cells(folder / "set.item")}
    assert files == {"B0": "", "B1": "images/B1.jpg", "B2": "images/B2.jpg", "B3": "", "B5": ""}
    content = ItemContent.load(folder, "set", sorted(files), missing_content="blank")
    assert [path and path.name for path in content.image_paths] == [None, "B1.jpg", "B2.jpg", None, None]
    assert report["data_set"]["images"] == 2


@pytest.fixture
def microlens_folder(tmp_path, make_csv):
    folder = tmp_path / "in"
    folder.mkdir()
    make_csv(folder / "MicroLens-100k_pairs.csv", ["user", "item", "timestamp"], [(1, 10, 3000), (2, 7, 5), (1, 7, 2)])
    (folder / "MicroLens-100k_pairs.tsv").write_text("1\t7 10\n2\t7\n")
    make_csv(folder / "MicroLens-100k_title_en.csv", ["item", "title"], [(7, 'seven, "7"\nup'), (8, "unused")])
    make_csv(folder / "captions.csv", ["item", "caption"], [(7, "a man"), (10, "a\tdog")])
    return folder


def microlens_source(folder):
    names = ("pairs", "titles", "images", "captions")
    return source_of(MicroLensSource, input=folder, **dict.fromkeys(names))


def test_microlens(microlens_folder, run, cells):
    source = source_of(
        MicroLensSource,
        input=microlens_folder,
        pairs=None,
        titles=None,
        images=None,
        captions=microlens_folder / "captions.csv",
    )
    folder, report = run(source)
    assert cells(folder / "set.inter") == [["1", "7", "2"], ["1", "10", "3000"], ["2", "7", "5"]]
    assert cells(folder / "set.item") == [["10", "", "a dog"], ["7", 'seven, "7" up', "a man"]]
    header = (folder / "set.item").read_text().splitlines()[0]
    assert header == "item_id:token\ttitle:token_seq\tcaption:token_seq"
    assert len(report["differences"]) == 3  # it is not the whole of MicroLens-100k


def test_microlens_without_times_or_headers(microlens_folder, run, cells):
    (microlens_folder / "MicroLens-100k_title_en.csv").write_text("7,seven\n10\n")
    pairs = microlens_folder / "MicroLens-100k_pairs.csv"
    pairs.write_text("1,10,3000\n2,7,5\n1,7,2\n")
    folder, _ = run(microlens_source(microlens_folder))
    assert by_user(cells(folder / "set.inter")) == {"1": ["7", "10"], "2": ["7"]}
    assert cells(folder / "set.item") == [["10", ""], ["7", "seven"]]
    pairs.unlink()
    folder, _ = run(microlens_source(microlens_folder), "other")
    assert cells(folder / "other.inter") == [["1", "7", "0"], ["1", "10", "1"], ["2", "7", "0"]]


@pytest.mark.parametrize("time", ["1.5e9", "-3", " 7", "7_", "2024-01-01"])
def test_microlens_loses_no_first_line_that_is_no_header(microlens_folder, run, cells, time):
    (microlens_folder / "MicroLens-100k_pairs.csv").write_text(f"u1,10,{time}\nu2,7,5\n")
    try:
        folder, _ = run(microlens_source(microlens_folder))
    except PerPEFTError as error:
        assert "line 1: the time" in str(error)
    else:
        assert len(cells(folder / "set.inter")) == 2


def test_microlens_texts_of_another_form_are_refused(microlens_folder, run):
    captions = {"caption.txt": b"7\ta man\n", "other.csv": b"99,a man\n"}
    for name, text in captions.items():
        (microlens_folder / name).write_bytes(text)
        source = MicroLensSource(
            microlens_folder / "MicroLens-100k_pairs.csv",
            microlens_folder / "MicroLens-100k_title_en.csv",
            None,
            {"caption": microlens_folder / name},
        )
        with pytest.raises(PerPEFTError, match=f"{name}: (the suffix tells|no line begins with an item)"):
            run(source)
    with gzip.open(microlens_folder / "c.tsv.gz", "wt") as file:
        file.write("7\ta man\n")
    assert _texts_of(microlens_folder / "c.tsv.gz", {"7"}) == {"7": "a man"}


def test_microlens_names_the_damaged_line(microlens_folder, run):
    titles = microlens_folder / "MicroLens-100k_title_en.csv"
    titles.write_text("7,seven,8\n")
    with pytest.raises(PerPEFTError, match="title_en.csv, line 1: 3 cells instead of item and text"):
        run(microlens_source(microlens_folder))
    titles.write_text("7,a\n7,b\n")
    with pytest.raises(PerPEFTError, match="line 2: the item '7' had a line before"):
        run(microlens_source(microlens_folder))
    (microlens_folder / "MicroLens-100k_pairs.csv").write_text("1,10,3000\n2,7,never\n")
    with pytest.raises(PerPEFTError, match="pairs.csv, line 2: the time 'never' is not a finite number"):
        run(microlens_source(microlens_folder))


def zipped(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.fixture
def perpeft_files(make_image):
    """The members of `mmrec_datasets.zip`, in its folder."""
    tokens = {1: "B001", 2: "B002", 3: "B003"}
    images = {f"toys_games_images/{token}.jpg": make_image(seed=seed) for seed, token in tokens.items()}
    return {
        "dataset/toys_games_final.txt": b"1 1\n1 3\n1 1\n2 3\n2 2\n",
        "dataset/toys_games_item2id_final.pickle": pickle.dumps(tokens),
        "dataset/toys_games_texts_final.pickle": pickle.dumps(
            {"B001": "One", "B002": "No description available.", "B003": 'A "three"'}
        ),
        "dataset/toys_games_images.zip": zipped(images),
        "dataset/arts_final.txt": b"",
    }


def write_unpacked(folder, members):
    folder.mkdir()
    for name, content in members.items():
        (folder / name.split("/")[-1]).write_bytes(content)
    return folder


def test_perpeft_reads_the_zip_and_the_folder_alike(tmp_path, perpeft_files, run, cells, files_below, monkeypatch):
    monkeypatch.setitem(perpeft.EXPECTED, "toys_games", ExpectedCounts(2, 4))
    path = tmp_path / "mmrec_datasets.zip"
    path.write_bytes(zipped(perpeft_files))
    folder, report = run(source_of(PerPEFTSource, input=path, set="toys_games"), "one/set")
    assert by_user(cells(folder / "set.inter")) == {"1": ["B001", "B003", "B001"], "2": ["B003", "B002"]}
    assert cells(folder / "set.item")[0] == ["B001", "One", "images/B001.jpg"]
    assert report["differences"] == ["4 items are published, 3 are found"]
    assert report["input"][0]["file"] == "mmrec_datasets.zip"
    unpacked = write_unpacked(tmp_path / "unpacked", perpeft_files)
    other, _ = run(source_of(PerPEFTSource, input=unpacked, set="toys_games"), "two/set")
    with zipfile.ZipFile(unpacked / "toys_games_images.zip") as archive:
        archive.extractall(unpacked)
    (unpacked / "toys_games_images.zip").unlink()
    third, _ = run(source_of(PerPEFTSource, input=unpacked, set="toys_games"), "three/set")
    files = [files_below(each) for each in (folder, other, third)]
    for each in files:
        assert each.pop("conversion.json")
    assert files[0] == files[1] == files[2] and len(files[0]) == 5
    assert not any(path.name.startswith(".") and path.is_dir() for path in folder.parent.iterdir())


def test_perpeft_with_images_in_the_outer_zip(tmp_path, perpeft_files, run, make_image):
    del perpeft_files["dataset/toys_games_images.zip"]
    perpeft_files |= {f"dataset/{name}_images/B001.jpg": make_image(seed=4) for name in ("arts", "toys_games")}
    path = tmp_path / "x.zip"
    path.write_bytes(zipped(perpeft_files))
    _, report = run(PerPEFTSource(path, "toys_games"))
    assert report["data_set"]["images"] == 1


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("final.txt", b"1 1\n1 4\n", "toys_games_final.txt, line 2: the item 4 is not in toys_games_item2id"),
        ("final.txt", b"1 1 1\n", "line 1: not of the form: user item"),
        ("item2id_final.pickle", pickle.dumps([1]), "not a dictionary of item numbers"),
        ("item2id_final.pickle", pickle.dumps({1: "a", 2: "a"}), "two item numbers have the same item id"),
        ("item2id_final.pickle", b"cos\nsystem\n.", "it has the instruction GLOBAL"),
        ("texts_final.pickle", pickle.dumps({"B001": 1}), "the title of 'B001' is 1, not a text"),
        ("images.zip", zipped({"../B001.jpg": b""}), "leaves its folder"),
    ],
)
def test_perpeft_names_what_is_damaged(tmp_path, perpeft_files, run, name, content, problem):
    perpeft_files[f"dataset/toys_games_{name}"] = content
    with pytest.raises(PerPEFTError, match=problem):
        run(PerPEFTSource(write_unpacked(tmp_path / "in", perpeft_files), "toys_games"))
    assert not list((tmp_path / "out").glob("*"))


def test_perpeft_wants_a_set_that_is_there(tmp_path, perpeft_files, run):
    path = tmp_path / "x.zip"
    path.write_bytes(zipped(perpeft_files))
    with pytest.raises(PerPEFTError, match="holds 0 files beauty_care_final.txt instead of one; is --set right"):
        run(PerPEFTSource(path, "beauty_care"))
    with pytest.raises(PerPEFTError, match="does not exist"):
        PerPEFTSource(tmp_path / "nothing", "arts")
    with pytest.raises(PerPEFTError, match="toys_games_final.txt is missing"):
        (tmp_path / "empty").mkdir()
        run(PerPEFTSource(tmp_path / "empty", "toys_games"))


@pytest.fixture
def vip5_folder(tmp_path):
    folder = tmp_path / "toys"
    folder.mkdir()
    (folder / "sequential_data.txt").write_text("1 1 2 3\n2 3 1\n")
    users, items = {"1": "AU", "2": "AV"}, {"1": "B9", "2": "B1", "3": "B5"}
    (folder / "datamaps.json").write_text(json.dumps({"id2user": users, "id2item": items, "item2id": {}}))
    meta = [{"asin": "B9", "title": "Nine's"}, {"asin": "B1", "price": 1.0}, {"asin": "B7", "title": "unused"}]
    (folder / "meta.json.gz").write_bytes(gzip.compress("\n".join(map(repr, meta)).encode()))
    row = {
        "reviewerID": "AU",
        "asin": "B9",
        "overall": 5.0,
        "summary": "Good\n",
        "explanation": "it is",
        "feature": "x",
    }
    splits = {"train": [row, {**row, "asin": "gone"}], "val": [], "test": [{"reviewerID": "AV", "asin": "B5"}]}
    (folder / "exp_splits.pkl").write_bytes(pickle.dumps(splits))
    return folder


def test_vip5(vip5_folder, tmp_path, run, cells, monkeypatch):
    monkeypatch.setitem(vip5.EXPECTED, "toys", ExpectedCounts(2, 3, 5))
    features = tmp_path / "features"
    features.mkdir()
    vectors = {"B9": np.arange(4, dtype=np.float32), "B1": np.ones((1, 4), dtype=np.float16)}
    for token, vector in vectors.items():
        np.save(features / f"{token}.npy", vector)
    folder, report = run(source_of(VIP5Source, input=vip5_folder, features=features))
    assert by_user(cells(folder / "set.inter")) == {"AU": ["B9", "B1", "B5"], "AV": ["B5", "B9"]}
    assert cells(folder / "set.item") == [["B1", ""], ["B5", ""], ["B9", "Nine's"]]
    (explained,) = (folder / "set.explanations.jsonl").read_text().splitlines()
    assert json.loads(explained) == {
        "split": "train",
        "user_id": "AU",
        "item_id": "B9",
        "rating": 5.0,
        "headline": "Good\n",
        "feature": "x",
        "explanation": "it is",
    }
    assert (folder / "set.features.txt").read_text() == "B1\nB9\n"
    np.testing.assert_array_equal(np.load(folder / "set.features.npy"), [[1, 1, 1, 1], [0, 1, 2, 3]])
    assert report["differences"] == []


def gzipped(content):
    """Without the time of day: values of parameters name tests, whose names must be the same in every process."""
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("sequential_data.txt", b"1 1\n2 9\n", "sequential_data.txt, line 2: the item 9 is not in datamaps.json"),
        ("sequential_data.txt", b"7 1\n", "line 1: not of the form"),
        ("datamaps.json", b"{}", "not JSON with the maps"),
        ("datamaps.json", b'{"id2user": {"1": 1}, "id2item": {}}', "must map texts to texts"),
        ("meta.json.gz", gzipped(b"{}\n__import__('os').getcwd()\n"), "gz, line 2: not a dictionary of plain"),
        ("meta.json.gz", gzipped(b"[" * 100_000 + b"\n"), "gz, line 1: not a dictionary of plain"),
        ("meta.json.gz", gzipped(b"[1]\n"), "gz, line 1: not a dictionary {"),
        ("meta.json.gz", gzipped(b" " * 2**21 + b"x"), "gz, line 1: longer than"),
        ("exp_splits.pkl", b"cos\nsystem\n.", "it has the instruction GLOBAL"),
        ("exp_splits.pkl", pickle.dumps({"train": []}), "has no list 'val'"),
        ("exp_splits.pkl", pickle.dumps({"train": [{"asin": "B9"}]}), "row 0 of 'train' has no reviewerID"),
    ],
)
def test_vip5_names_what_is_damaged(vip5_folder, run, tmp_path, name, content, problem):
    (vip5_folder / name).write_bytes(content)
    with pytest.raises(PerPEFTError, match=problem):
        run(VIP5Source(vip5_folder))
    assert not list((tmp_path / "out").glob("*"))


def test_vip5_features_cannot_run_anything(vip5_folder, run, tmp_path):
    features = tmp_path / "features"
    features.mkdir()
    np.save(features / "B1.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(PerPEFTError, match=r"B1\.npy: not an array that can be read"):
        run(VIP5Source(vip5_folder, features))
    np.save(features / "B1.npy", np.ones(3))
    np.save(features / "B5.npy", np.ones(4))
    with pytest.raises(PerPEFTError, match=r"B5\.npy: .* is not a vector like those before"):
        run(VIP5Source(vip5_folder, features))


def test_expected_counts_are_those_of_the_papers():
    assert iisan.EXPECTED["Scientific"] == ExpectedCounts(12_076, 20_314, 81_711)
    assert microlens.EXPECTED["MicroLens-100k"] == ExpectedCounts(100_000, 19_738, 719_405)
    assert perpeft.EXPECTED["beauty_care"] == ExpectedCounts(45_490, 31_151)
    assert vip5.EXPECTED["toys"] == ExpectedCounts(19_412, 11_924, 167_597)
