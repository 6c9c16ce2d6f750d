"""Names of others in a report: they stay names."""

import csv
import io
import re

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.studies.report.escape import in_csv, in_html, in_latex, in_markdown
from recbole_perpeft.studies.report.tables import Cell, Table

NASTY = st.text(st.sampled_from(list("=+-@|_*[]<>&`~\\{}$%#^\"'a \n\r\t\x00\x1b\x85\u2028")), max_size=12)


def table_of(name):
    return Table(name, ["model", name], [[Cell(name), Cell("0.1", 1)]], name)


@given(NASTY.map("m".__add__))
@settings(max_examples=50)
def test_a_name_stays_in_its_cell(name):
    markdown, latex, page = table_of(name).to_markdown(), table_of(name).to_latex(), table_of(name).to_html()
    assert len(markdown.splitlines()) == 7 and len(latex.splitlines()) == 11
    for line in markdown.splitlines()[2:5]:
        assert len(re.findall(r"(?<!\\)\|", line.replace("\\\\", ""))) == 3
    assert not re.search(r"(?<!\\)[<`]", markdown.replace("\\\\", ""))
    assert all(line.count(" & ") == 1 for line in latex.splitlines()[5:8:2])
    assert "<" not in in_html(name) and not re.search("[\x00-\x09\x0b-\x1f]", markdown + latex + page)


@given(st.lists(NASTY, min_size=1, max_size=5))
@settings(max_examples=50)
def test_no_cell_of_a_table_of_numbers_is_a_formula(names):
    table = pd.DataFrame({"model": names, "mean": -1.5})
    text = in_csv(table).to_csv(index=False)
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert len(rows) == 1 + len(names) and all(row[1] == "-1.5" for row in rows[1:])
    for name, (cell, _) in zip(names, rows[1:], strict=True):
        name = re.sub("\r\n?", "\n", name)
        assert cell == (f"'{name}" if name[:1] in tuple("=+-@\t\n") else name)


def test_texts_among_numbers_and_gaps():
    numbers = pd.Series([1, None, 2, 3, {}], dtype=object)
    assert in_csv(pd.DataFrame({"n": numbers}))["n"].tolist() == numbers.tolist()
    table = pd.DataFrame({"mixed": pd.Series([-1, "=1+1", None, "plain", 2.5], dtype=object), "n": [-1, 1, 2, 3, 4]})
    made = in_csv(table)
    assert made["mixed"].tolist() == [-1, "'=1+1", None, "plain", 2.5] and made["n"].tolist() == [-1, 1, 2, 3, 4]
    assert table["mixed"][1] == "=1+1"


def test_markup_is_text():
    assert in_markdown("<img src=x> `a` [b](c) _d_ a_b") == r"\<img src=x\> \`a\` \[b\](c) \_d\_ a_b"
    assert in_markdown("&lt;") == r"\&lt;"
    assert in_latex("[1] 50% *") == r"{[}1] 50\% {*}"
    assert in_html("<b>\n&") == "&lt;b&gt; &amp;"
