"""The page of a study: one HTML file with its plots, which needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plotly.graph_objects import Figure

from recbole_perpeft.studies.report.escape import in_html
from recbole_perpeft.studies.report.tables import Table

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
_PLOT = {"displaylogo": False, "responsive": True}
_PAGE = """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 1280px; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; }} h3 {{ margin: 1.8rem 0 .4rem; }}
h2 {{ margin-top: 2.5rem; border-bottom: 2px solid #0072B2; }}
figure {{ margin: 0; }} .scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }}
thead th {{ border-bottom: 2px solid #888; vertical-align: bottom; white-space: normal; }}
th:first-child {{ text-align: left; font-weight: 500; }}
td.long {{ text-align: left; white-space: normal; min-width: 20rem; }}
figcaption {{ color: #555; font-size: .88rem; margin-top: .4rem; }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(520px, 100%), 1fr)); gap: 1rem; }}
.plots section {{ min-width: 0; }}
{style}</style></head>
<body><h1>{title}</h1>
{body}
</body></html>
"""


@dataclass(frozen=True)
class Chapter:
    """A part of a page.

    Attributes:
        title: heading; without one the chapter follows the title of the page.
        paragraphs: plain text.
        tables: tables.
        figures: plots by title, which may be empty.
        html: parts of their own, in which every text from outside is escaped already.
    """

    title: str = ""
    paragraphs: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)
    html: Sequence[str] = ()


def to_html(title: str, chapters: Sequence[Chapter], style: str = "") -> str:
    """The page; plotly's script is part of it.

    Args:
        title: of the page.
        chapters: in their order.
        style: rules of CSS for parts of its own.
    """
    parts: list[str] = []
    script = True  # into the first plot alone
    for chapter in chapters:
        parts += [_heading(2, chapter.title), *(f"<p>{in_html(text)}</p>" for text in chapter.paragraphs)]
        parts += [table.to_html() for table in chapter.tables]
        parts += chapter.html
        figures = []
        for name, figure in chapter.figures.items():
            plot = figure.to_html(full_html=False, include_plotlyjs=script, config=_PLOT)
            script = False
            figures.append(f"<section>{_heading(3, name)}{plot}</section>")
        parts += [f'<div class="plots">{"".join(figures)}</div>'] if figures else []
    return _PAGE.format(title=in_html(title), body="\n".join(filter(None, parts)), style=style)


def new_figure(x_title: str = "", y_title: str = "", height: int = 420, **x_axis: Any) -> Figure:
    """A plot without data.

    Args:
        x_title: title of its x axis.
        y_title: title of its y axis.
        height: in pixels.
        x_axis: what else plotly takes for the x axis.
    """
    figure = Figure()
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 70, "r": 20, "t": 20, "b": 60},
        legend={"orientation": "h", "y": -0.25},
    )
    figure.update_xaxes(title=in_html(x_title), **x_axis)
    figure.update_yaxes(title=in_html(y_title))
    return figure


def add_curve(figure: Figure, curve: Mapping[int, float], name: str, colour: str, **more: Any) -> None:
    """Draw scores by epoch.

    Args:
        figure: the plot.
        curve: the scores.
        name: what the legend calls it.
        colour: of line and markers.
        more: what else plotly takes for a line.
    """
    marker = {"color": colour, "size": 5} | more.pop("marker", {})
    line = {"color": colour, "width": 1.5}
    x, y = list(curve), list(curve.values())
    figure.add_scatter(x=x, y=y, name=in_html(name), mode="lines+markers", line=line, marker=marker, **more)


def _heading(level: int, text: str) -> str:
    return f"<h{level}>{in_html(text)}</h{level}>" if text else ""
