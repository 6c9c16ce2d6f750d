import re

from recbole_perpeft.studies.report.page import Chapter, add_curve, new_figure, to_html
from recbole_perpeft.studies.report.tables import Cell, Table


def curves(name):
    figure = new_figure("epoch", "<score>")
    add_curve(figure, {1: 0.1, 3: 0.2}, name, "#000", marker={"symbol": "x"}, showlegend=False)
    return figure


def test_a_curve():
    figure = curves("<b>bold</b>")
    (line,) = figure.data
    assert (line.x, line.y, line.showlegend) == ((1, 3), (0.1, 0.2), False)
    assert (line.marker.color, line.marker.size, line.marker.symbol) == ("#000", 5, "x")
    # Plotly reads texts as HTML.
    assert line.name == "&lt;b&gt;bold&lt;/b&gt;" and figure.layout.yaxis.title.text == "&lt;score&gt;"


def test_a_page():
    chapters = [
        Chapter(paragraphs=["1 < 2", "& so on"]),
        Chapter("<One>", tables=[Table("T", ["a"], [[Cell("x")]])], figures={"": curves("a"), "P & Q": curves("b")}),
    ]
    page = to_html("<Study>", chapters)
    text = re.sub(r"<script.*?</script>|<style>.*?</style>", "", page, flags=re.S)
    assert "<title>&lt;Study&gt;</title>" in text and "<h1>&lt;Study&gt;</h1>" in text
    assert "<p>1 &lt; 2</p>\n<p>&amp; so on</p>\n<h2>&lt;One&gt;</h2>\n<h3>T</h3>" in text
    assert text.count("<h3>") == 2 and "<section><h3>P &amp; Q</h3>" in text and text.count("<section>") == 2
    assert page.count("Plotly.newPlot(") >= 2 and page.count("plotly.js v") == 1  # plotly's script is there once
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)
