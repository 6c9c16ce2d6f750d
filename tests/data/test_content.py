import logging
import os
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.content import ItemContent

HEADER = "item_id:token\ttitle:token_seq\n"


def write_items(folder, text, images=(), name="shop"):
    (folder / f"{name}.item").write_bytes(text if isinstance(text, bytes) else text.encode())
    (folder / "images").mkdir(exist_ok=True)
    for image in images:
        (folder / "images" / image).touch()


def load(folder, tokens=(), missing_content="error"):
    return ItemContent.load(folder, "shop", tokens, missing_content)


def message_of(content, damaged=None):
    with pytest.raises(PerPEFTError) as caught:
        content.check(damaged or {})
    return str(caught.value)


def test_titles_are_raw_and_images_are_found_by_id(tmp_path):
    titles = [
        "  two  spaces ",
        '"quoted, "" twice',
        "&amp; <b>x</b>",
        "Ünïcødé 日本語 \u2028 \x85 line",
        "'single",
        "#,\\n",
    ]
    tokens = ["a", "b.c", "ü/x", "d", "e", "007"]
    lines = "".join(f"{token}\t{title}\n" for token, title in zip(tokens, titles, strict=True))
    write_items(tmp_path, HEADER + lines, ["a.jpg", "b.c.png", "d.webp", "e.JPEG", "007.jpeg", "7.jpg", "notes.txt"])
    content = load(tmp_path, tokens)
    assert content.titles == titles
    assert content.tokens == tokens
    names = [path and path.name for path in content.image_paths]
    assert names == ["a.jpg", "b.c.png", None, "d.webp", "e.JPEG", "007.jpeg"]
    assert "column image:token of the item file: 'ü/x'" in message_of(content)


plain_text = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\t\n\r"))


@settings(max_examples=50)
@given(titles=st.lists(plain_text, min_size=1, max_size=8), crlf=st.booleans(), mark=st.booleans(), swap=st.booleans())
def test_any_title_survives(tmp_path_factory, titles, crlf, mark, swap):
    folder = tmp_path_factory.mktemp("items")
    end = "\r\n" if crlf else "\n"
    rows = [("item_id:token", "title:token_seq"), *((f"ï{i}", title) for i, title in enumerate(titles))]
    lines = ["\t".join((*row[::-1], "x:y") if swap else (*row, "x:y")) for row in rows]
    write_items(folder, ("\ufeff" if mark else "").encode() + (end.join(lines) + end).encode())
    content = load(folder)
    assert content.titles == titles
    assert content.tokens == [f"ï{i}" for i in range(len(titles))]


def test_image_column(tmp_path):
    (tmp_path / "photos" / "x").mkdir(parents=True)
    (tmp_path / "photos" / "x" / "1.gif").touch()
    lines = "a\tA\tphotos/x/1.gif\nb\tB\t\nc\tC\tphotos/none.jpg\nd\tD\tnowhere/1.jpg\n"
    write_items(tmp_path, "item_id:token\ttitle:token_seq\timage:token\n" + lines, ["b.png"])
    content = load(tmp_path)
    assert content.image_paths[:2] == [tmp_path / "photos/x/1.gif", tmp_path / "images/b.png"]
    assert content.image_paths[2:] == [None, None]
    assert "2 items have no image: 'c' (photos/none.jpg), 'd' (nowhere/1.jpg)" in message_of(content)


def test_the_image_column_means_files_in_either_form_of_unicode(tmp_path):
    given = ["fotos/é.jpg", "fotos/é.jpg", "bilder/ü.png"]
    names = [unicodedata.normalize(form, name) for form, name in zip(("NFD", "NFC", "NFC"), given, strict=True)]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / names[0]).touch()
    (tmp_path / names[2]).touch()
    lines = "".join(f"{i}\tA\t{name}\n" for i, name in enumerate([given[0], names[0], "bilder/u\u0308.png"]))
    write_items(tmp_path, "item_id:token\ttitle:token_seq\timage:token\n" + lines)
    assert load(tmp_path).image_paths == [tmp_path / names[0], tmp_path / names[0], tmp_path / names[2]]


def test_an_item_file_that_is_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "shop.item")
    with pytest.raises(PerPEFTError, match=r"shop\.item: cannot be read \(not a regular file\)"):
        load(tmp_path)


@pytest.mark.parametrize(
    "path", ["..\\x.jpg", "C:/x.jpg", "a\x1b[31m.jpg", "../x.jpg", "/etc/x.jpg", "images/../../x.jpg", ".."]
)
def test_paths_out_of_the_folder_are_refused(tmp_path, path):
    folder = tmp_path / "shop"
    folder.mkdir()
    (tmp_path / "x.jpg").touch()
    write_items(folder, f"item_id:token\ttitle:token_seq\timage:token\na\tA\t{path}\n")
    content = load(folder, missing_content="blank")
    assert content.image_paths == [None]
    assert f"leave the folder of the data set: 'a' ({path!r})" in message_of(content)


def test_everything_wrong_is_told_at_once(tmp_path):
    lines = ["a\tA", "b\t ", "a\tA again", "c", "\tno id", "d\tD\textra", "", "e\tE", "f\tF"]
    text = (HEADER + "\n".join(lines)).encode() + b"\ng\t\xff\n"
    write_items(tmp_path, text, ["a.jpg", "b.jpg", "e.jpg"])
    content = load(tmp_path, ["a", "b", "z", "y"])
    message = message_of(content, {2: "truncated or damaged"})
    for part in (
        "1 lines are not UTF-8: line 11 (byte 3)",
        "2 lines have a wrong number of columns: line 5 (1 instead of 2), line 7 (3 instead of 2)",
        "1 lines have no item id: line 6",
        "1 item ids occur more than once: 'a' (lines 2 and 4)",
        "2 items of the interactions are not in the item file: 'y', 'z'",
        "1 items have no image: 'f'",
        "1 images cannot be used: 'e' (images/e.jpg: truncated or damaged)",
        "1 titles are empty: 'b'",
        "shop.item",
        "10 problem(s)",
        "--missing_content=blank",
    ):
        assert part in message
    assert content.tokens == ["a", "b", "e", "f"]


def test_only_the_first_ten_are_named(tmp_path):
    write_items(tmp_path, HEADER + "".join(f"i{i:02}\tT\n" for i in range(30)))
    message = message_of(load(tmp_path))
    assert "30 items have no image" in message and "'i09', ..." in message and "i10" not in message


def test_missing_folder_is_one_problem(tmp_path):
    write_items(tmp_path, HEADER + "a\tA\nb\tB\n")
    (tmp_path / "images").rmdir()
    message = message_of(load(tmp_path))
    assert f"1 folders of images are missing: {tmp_path / 'images'} (for 2 items)" in message
    assert "have no image" not in message


def test_blank_logs_what_is_missing(tmp_path, caplog):
    write_items(tmp_path, HEADER + "a\t\nb\tB\n", ["a.jpg"])
    load(tmp_path, ["a", "b"], "blank").check({0: "the file is empty"})
    assert "1 titles are empty: 'a'" in caplog.text
    assert "1 items have no image: 'b'" in caplog.text
    assert "1 images cannot be used" in caplog.text


@pytest.mark.parametrize(("lines", "tokens"), [("a\tA\na\tB\n", []), ("a\tA\n", ["b"])])
def test_blank_does_not_hide_duplicates_and_unknown_items(tmp_path, lines, tokens):
    write_items(tmp_path, HEADER + lines, ["a.jpg"])
    message_of(load(tmp_path, tokens, "blank"))


def test_items_without_interactions_are_kept_with_a_warning(tmp_path, caplog):
    write_items(tmp_path, HEADER + "a\tA\nb\tB\n", ["a.jpg", "b.jpg"])
    caplog.set_level(logging.WARNING)
    content = load(tmp_path, ["[PAD]", "a"])
    content.check({})
    assert content.tokens == ["a", "b"]
    assert "1 of 2 items have no interactions" in caplog.text


def test_of_several_images_the_first_kind_is_used(tmp_path, caplog):
    write_items(tmp_path, HEADER + "a\tA\n", ["a.png", "a.webp", "a.jpeg"])
    assert load(tmp_path).image_paths == [tmp_path / "images" / "a.jpeg"]
    assert "several images" in caplog.text


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "line 1"),
        ("item_id:token\tname:token_seq\na\tA\n", "column 'title' is missing"),
        ("title:token_seq\nA\n", "column 'item_id' is missing"),
        ("item_id\ttitle:token_seq\na\tA\n", "column 'item_id' is not of the form field:type"),
        ("item_id:token\ttitle:token_seq\ttitle:token\na\tA\tB\n", "column 'title' occurs twice"),
        (HEADER, "lists no items"),
        (b"item_id:token\ttitle:\xff\n", "line 1 is not UTF-8"),
    ],
)
def test_unusable_files(tmp_path, text, part):
    write_items(tmp_path, text)
    with pytest.raises(PerPEFTError, match=r"shop\.item") as caught:
        load(tmp_path)
    assert part in str(caught.value)


def test_missing_file_and_unknown_setting(tmp_path):
    with pytest.raises(PerPEFTError, match="cannot be read"):
        load(tmp_path)
    write_items(tmp_path, HEADER + "a\tA\n", ["a.jpg"])
    with pytest.raises(PerPEFTError, match="missing_content: 'ignore'"):
        load(tmp_path, missing_content="ignore")


def test_reading_opens_no_image(tmp_path, monkeypatch):
    write_items(tmp_path, HEADER + "a\tA\n", ["a.jpg"])
    monkeypatch.setattr(Image, "open", None)
    load(tmp_path, ["a"]).check({})


def test_digest_tells_shifted_texts_apart(tmp_path):
    def digest(tokens, titles):
        return ItemContent("shop", tmp_path, tokens, titles, [None] * len(tokens)).digest().hexdigest()

    assert digest(["a", "b"], ["x", "y"]) != digest(["a", "b"], ["xy", ""])
    assert digest(["a", "b"], ["x", "y"]) != digest(["ab", ""], ["x", "y"])
    assert digest(["a"], ["x"]) == digest(["a"], ["x"])
