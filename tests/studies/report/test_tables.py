import pytest

from recbole_perpeft.studies.report.tables import Cell, Table, places


@pytest.mark.parametrize(
    ("values", "bigger", "expected"),
    [
        ([1, 3, 2], True, [0, 1, 2]),
        ([1, 3, 2], False, [1, 0, 2]),
        ([3, 3, 2, 1], True, [1, 1, 2, 0]),
        ([float("nan"), 1, 2], True, [0, 2, 1]),
        ([float("nan"), 1], True, [0, 0]),
        ([5], True, [0]),
        ([], True, []),
    ],
)
def test_best_and_second_best(values, bigger, expected):
    assert places(values, bigger) == expected


def test_marks_and_special_characters():
    rows = [[Cell("a|b_c"), Cell("0.2 ± 0.1", 1)], [Cell("<&%>"), Cell("0.1", 2)]]
    table = Table("T & U", ["model", "≥ 1"], rows, "n_1")
    assert "| a\\|b_c | **0.2 ± 0.1** |" in table.to_markdown() and "| _0.1_ |" in table.to_markdown()
    latex = table.to_latex()
    assert r"a|b\_c & \textbf{0.2 $\pm$ 0.1} \\" in latex and r"$<$\&\%$>$ & \underline{0.1} \\" in latex
    assert r"\caption{T \& U. n\_1}" in latex and r"model & $\geq$ 1 \\" in latex
    page = table.to_html()
    assert "<strong>0.2 ± 0.1</strong>" in page and "&lt;&amp;%&gt;" in page and "<h3>T &amp; U</h3>" in page


def test_headings_are_escaped_too():
    text = Table("Against a|b", ["model", "of [x]"], [[Cell("m"), Cell("1")]]).to_markdown()
    assert text.splitlines()[0] == "### Against a\\|b" and "| model | of \\[x\\] |" in text


def test_long_texts_are_broken_into_lines():
    rows = [[Cell("m"), Cell("what went wrong " * 9), Cell("0.1")]]
    page = Table("", ["model", "error", "x"], rows).to_html()
    assert page.startswith("<figure>") and page.count("<td class=long>") == 1 and "<td>0.1</td>" in page
