"""Amazon Reviews 2023: json lines read fast and slowly alike, tables, metadata, images and downloads."""

import gzip
import http.server
import json
import threading
import urllib.error

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.convert import download
from recbole_perpeft.convert.download import check_address, download_images, fetch
from recbole_perpeft.convert.sources.amazon2023 import REVIEW, Amazon2023Source, image_address
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.files import json_lines as json_tables

URL = "https://m.media-amazon.com/images/I/"


def review(user, item, time, **other):
    return {
        "rating": 4.0, "title": "Nice", "text": "Line\nbreak \"quoted\"", "images": [{"small_image_url": "x"}],
        "asin": "OTHER", "parent_asin": item, "user_id": user, "timestamp": time, "helpful_vote": 0,
        "verified_purchase": True, **other,
    }  # fmt: skip


def write_jsonl(path, rows):
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def dense_reviews():
    """Five users with five items each, and some who leave with the 5-core."""
    rows = [review(f"U{user}", f"B{item}", 1000 * user - item) for user in range(5) for item in range(5)]
    return [review("V", "B0", 5), *rows, review("U0", "B0", -(10**6)), review("V", "B9", 5)]


VALUES = st.fixed_dictionaries(
    {"user_id": st.text(max_size=6), "parent_asin": st.text(max_size=6), "timestamp": st.integers(-(2**62), 2**62)},
    optional={
        "rating": st.one_of(st.none(), st.floats(0, 5), st.integers(1, 5)),
        "text": st.text(),
        "images": st.none(),
    },
)


@settings(max_examples=60)
@given(rows=st.lists(VALUES, min_size=1, max_size=8), ascii=st.booleans(), blank=st.booleans())
def test_fast_and_slow_parsing_agree(tmp_path_factory, rows, ascii, blank):
    path = tmp_path_factory.mktemp("json") / "file.jsonl"
    lines = [json.dumps(row, ensure_ascii=ascii) for row in rows]
    path.write_bytes("\n\n".join(lines).encode() if blank else "\n".join(lines).encode())
    tables = list(json_tables.json_tables(path, REVIEW))
    assert [row for _, table in tables for row in table.to_pylist()] == [
        {name: row.get(name) for name in REVIEW.names} for row in rows
    ]
    assert [line for lines, _ in tables for line in lines.tolist()] == [
        1 + at * (2 if blank else 1) for at in range(len(rows))
    ]


def test_parsing_is_fast_by_default(tmp_path, monkeypatch):
    def fail(*_):
        raise AssertionError

    monkeypatch.setattr(json_tables, "_parsed_slowly", fail)
    path = write_jsonl(tmp_path / "x.jsonl", dense_reviews())
    assert sum(len(table) for _, table in json_tables.json_tables(path, REVIEW)) == 28


def test_half_surrogates_do_not_stop_a_title(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"parent_asin": "B0", "title": "half \\ud83d, whole \\ud83d\\ude00"}\n')
    schema = pa.schema([("title", pa.string())])
    ((_, table),) = json_tables.json_tables(tmp_path / "x.jsonl", schema)
    assert table["title"].to_pylist() == ["half \ufffd, whole \U0001f600"]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_reviews_become_the_5_core(tmp_path, run, cells, suffix):
    path = write_jsonl(tmp_path / f"Toys{suffix}", dense_reviews())
    folder, report = run(Amazon2023Source([path]), **vars(Amazon2023Source.filters))
    rows = cells(folder / "set.inter")
    assert [row[1] for row in rows if row[0] == "U1"] == ["B4", "B3", "B2", "B1", "B0"]
    assert [row[1] for row in rows if row[0] == "U0"] == ["B0", "B4", "B3", "B2", "B1"]  # the earliest of two
    assert rows[0] == ["U0", "B0", "-1000000", "4"]
    assert [step["interactions"] for step in report["counts"]] == [28, 27, 25]


def test_tables_with_and_without_times(tmp_path, run, cells, make_csv):
    train = make_csv(
        tmp_path / "Toys.train.csv",
        ["user_id", "parent_asin", "rating", "timestamp", "history"],
        [("u", "a", "5.0", 3, "x y"), ("u", "b", "4.5", 1, "")],
    )
    test = make_csv(tmp_path / "Toys.test.csv", ["user_id", "parent_asin", "rating", "timestamp"], [("u", "c", 1, 2)])
    folder, _ = run(Amazon2023Source([train, test]))
    assert cells(folder / "set.inter") == [["u", "b", "1", "4.5"], ["u", "c", "2", "1"], ["u", "a", "3", "5"]]
    bare = make_csv(tmp_path / "bare.csv", ["user_id", "parent_asin"], [("u", "b"), ("v", "b"), ("u", "a")])
    folder, _ = run(Amazon2023Source([bare]), "bare")
    assert cells(folder / "bare.inter") == [["u", "b", "0"], ["u", "a", "1"], ["v", "b", "0"]]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"user_id": "u", ', "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"user_id": 7, "parent_asin": "a", "timestamp": 1}', "user_id is 7, not a text"),
        ('{"user_id": "u", "timestamp": 1, "rating": 1}', "has no item id"),
        ('{"user_id": "u", "parent_asin": "a", "timestamp": "now"}', 'timestamp is "now", not int64'),
        ('{"user_id": "u", "parent_asin": "a", "rating": 1}', "has no finite time"),
        ('{"user_id": "u", "parent_asin": "a", "timestamp": 1e400}', "timestamp is Infinity, not int64"),
        ("[" * 100_000, "not JSON"),
        ('{"user_id": "u"} {"user_id": "v"}', "not JSON"),
    ],
)
def test_the_damaged_line_is_named(tmp_path, run, line, problem):
    path = write_jsonl(tmp_path / "x.jsonl", dense_reviews())
    with open(path, "a") as file:
        file.write(line + "\n")
    with pytest.raises(PerPEFTError, match=rf"x\.jsonl, line 29: .*{problem}"):
        run(Amazon2023Source([path]))
    assert not list((tmp_path / "out").glob("*"))


def test_a_line_that_is_not_utf8_is_named(tmp_path, run):
    path = write_jsonl(tmp_path / "x.jsonl", dense_reviews())
    path.write_bytes(path.read_bytes() + b'{"user_id": "\xff"}\n')
    with pytest.raises(PerPEFTError, match=r"x\.jsonl, line 29: not UTF-8"):
        run(Amazon2023Source([path]))


def meta(item, title, **picture):
    no_picture = {"thumb": None, "large": None, "hi_res": None}
    pictures = [{**no_picture, "variant": "PT01", "large": f"{URL}no.jpg"}] * 2
    pictures += [{**no_picture, "variant": "MAIN", **picture}] if picture else []
    return {"main_category": "Toys", "title": title, "parent_asin": item, "price": None, "images": pictures}


def test_titles_and_images_from_metadata(tmp_path, run, cells, make_image):
    reviews = write_jsonl(tmp_path / "x.jsonl", [review("u", item, 1) for item in ("B0", "B1", "B2", "B3", "B4")])
    rows = [
        meta("B0", "Zero &amp; more", large=f"{URL}41%2BA.jpg"),
        meta("B1", "One", hi_res=f"{URL}51B.jpg"),
        meta("B1", "again"),
        meta("B2", None),
        {"parent_asin": "B3", "images": []},
        {"parent_asin": "unused"},
    ]
    images = tmp_path / "images"
    images.mkdir()
    for name in ("41+A.jpg", "B1.jpg", "51B.jpg"):
        (images / name).write_bytes(make_image(seed=len(name)))
    source = Amazon2023Source([reviews], [write_jsonl(tmp_path / "meta.jsonl.gz", rows)], images)
    folder, _ = run(source, unescape_titles=True)
    assert cells(folder / "set.item") == [
        ["B0", "Zero & more", "images/B0.jpg"],
        ["B1", "One", "images/B1.jpg"],
        ["B2", "", ""],
        ["B3", "", ""],
        ["B4", "", ""],
    ]
    assert (folder / "images" / "B1.jpg").read_bytes() == make_image(seed=len("B1.jpg"))


def test_the_main_picture_counts():
    assert image_address(meta("B0", "", thumb="t", hi_res="h")["images"]) == "h"
    assert image_address(meta("B0", "")["images"]) == f"{URL}no.jpg"
    assert image_address([]) == image_address(None) == ""


def test_names_in_addresses_cannot_leave_the_folder(tmp_path, run, make_image):
    (tmp_path / "secret.jpg").write_bytes(make_image())
    images = tmp_path / "images"
    images.mkdir()
    reviews = write_jsonl(tmp_path / "x.jsonl", [review("u", "../secret", 1), review("u", "B1", 1)])
    rows = [meta("B1", "", large=f"{URL}..%2Fsecret.jpg"), meta("../secret", "", large=f"{URL}..")]
    _, report = run(Amazon2023Source([reviews], [write_jsonl(tmp_path / "meta.jsonl", rows)], images))
    assert report["data_set"]["images"] == 0


def test_downloads_need_a_folder(tmp_path, run):
    with pytest.raises(PerPEFTError, match="--download needs --images"):
        Amazon2023Source([], download=True)
    with pytest.raises(PerPEFTError, match="--download needs --meta"):
        Amazon2023Source([], images=tmp_path, download=True)
    reviews = write_jsonl(tmp_path / "x.jsonl", [review("u", "B1", 1)])
    with pytest.raises(PerPEFTError, match="is not a folder; --download"):
        run(Amazon2023Source([reviews], images=tmp_path / "nothing"))


def test_downloads_go_on_and_try_again(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0)
    (tmp_path / "a.jpg").write_bytes(b"there")
    asked = []

    def fetch_bytes(address):
        asked.append(address)
        if address == "flaky" and asked.count("flaky") < 3:
            raise TimeoutError("slow")
        if address in ("gone", "busy"):
            raise urllib.error.HTTPError(address, {"gone": 404, "busy": 503}[address], "no", None, None)
        return address.encode()

    addresses = {"a": "a", "b": "flaky", "c": "gone", "d": "busy", "../e": "e"}
    failures = download_images(addresses, tmp_path, 10_000, fetch_bytes)
    assert set(failures) == {"c", "d"}
    assert {name: asked.count(name) for name in ("a", "flaky", "gone", "busy")} == {
        "a": 0, "flaky": 3, "gone": 1, "busy": download.N_TRIES
    }  # fmt: skip
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "a.jpg": b"there", "b.jpg": b"flaky", "%2E%2E%2Fe.jpg": b"e"
    }  # fmt: skip


class Shop(http.server.BaseHTTPRequestHandler):
    """Announces 9 bytes and sends as many as the address says, or no HTTP at all."""

    def do_GET(self):
        if self.path == "/garbage":
            self.wfile.write(b"nothing\r\n\r\n")
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if self.path == "/page" else "image/jpeg")
        self.send_header("Content-Length", "9")
        self.end_headers()
        self.wfile.write(b"123456789"[: int(self.path.strip("/")) if self.path[1:].isdigit() else 9])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def shop(monkeypatch):
    monkeypatch.setattr(download, "check_address", lambda address: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Shop) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_what_comes_incomplete_or_is_no_image_is_not_kept(tmp_path, shop, monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0)
    names = ("9", "4", "page", "garbage", "a b")
    failures = download_images({name: f"{shop}/{name}" for name in names}, tmp_path, 10_000)
    assert "cut off, 5 bytes are missing" in failures["4"] and "text/html and no image" in failures["page"]
    assert set(failures) == {"4", "page", "garbage", "a b"}
    assert [path.name for path in tmp_path.iterdir()] == ["9.jpg"]


def test_without_a_network_downloads_give_up(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0)
    asked = []

    def fetch_bytes(address):
        asked.append(address)
        raise OSError("no network")

    failures = download_images({f"i{place}": "x" for place in range(400)}, tmp_path, 1e6, fetch_bytes)
    assert len(failures) == 400 and len(asked) < 200 * download.N_TRIES
    assert "not asked for, as 100 in a row could not be had" in failures["i399"]


def test_addresses_and_times_that_nobody_can_use_end_nothing(tmp_path, run, caplog):
    reviews = write_jsonl(tmp_path / "x.jsonl", [review("u", "B1", 2**53 + 1), review("u", "B0", 1)])
    rows = [meta("B1", "a", large="https://[m.media/1.jpg"), meta("B0", "b", large=f"{URL}{'x' * 300}.jpg")]
    source = Amazon2023Source([reviews], [write_jsonl(tmp_path / "meta.jsonl", rows)], tmp_path)
    assert run(source)[1]["data_set"]["titles"] == 2


def test_downloads_keep_the_pace(tmp_path, monkeypatch):
    slept, now = [], [100.0]
    monkeypatch.setattr(download.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(download.time, "sleep", slept.append)
    pace = download.Pace(4)
    for _ in range(3):
        pace.wait()
    assert slept == [0, 0.25, 0.5]
    with pytest.raises(PerPEFTError, match="requests_per_second"):
        download.Pace(0)


@pytest.mark.parametrize(
    "address",
    ["http://169.254.169.254/x", "file:///etc/passwd", "ftp://m.media-amazon.com/x", "https://media-amazon.com.evil.org/",
     "https://evilmedia-amazon.com/x", "https://m.media-amazon.com@evil.org/x", "//m.media-amazon.com/x", "x"],
)  # fmt: skip
def test_only_the_shop_is_asked(address):
    with pytest.raises(PerPEFTError, match="is not on"):
        fetch(address)
    with pytest.raises(PerPEFTError, match="is not on"):
        download._SameHosts().redirect_request(None, None, 302, "", {}, address)
    check_address(f"{URL}a.jpg")


def test_a_conversion_downloads_what_is_missing(tmp_path, run, make_image, monkeypatch):
    def fake(addresses, folder, pace, show_progress):
        assert addresses == {"B1": f"{URL}1.jpg"} and pace == 10.0
        (folder / "B1.jpg").write_bytes(make_image())

    monkeypatch.setattr("recbole_perpeft.convert.sources.amazon2023.download_images", fake)
    reviews = write_jsonl(tmp_path / "x.jsonl", [review("u", "B1", 1), review("u", "B0", 1)])
    rows = [meta("B1", "", large=f"{URL}1.jpg"), meta("B0", "", large=f"{URL}0.jpg")]
    images = tmp_path / "images"
    images.mkdir()
    (images / "0.jpg").write_bytes(make_image())
    source = Amazon2023Source([reviews], [write_jsonl(tmp_path / "meta.jsonl", rows)], images, download=True)
    _, report = run(source)
    assert report["data_set"]["images"] == 2
