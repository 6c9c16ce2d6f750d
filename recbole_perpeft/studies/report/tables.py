"""Tables of marked cells, as Markdown, LaTeX and HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from recbole_perpeft.studies.report.escape import in_html, in_latex, in_markdown

_FIRST, _SECOND = 1, 2
_LONG = 60  # characters; a longer text in a cell is broken into lines


@dataclass(frozen=True)
class Cell:
    """Text of a cell.

    Attributes:
        text: plain text.
        place: 1 for the best of its column, 2 for the second best, else 0.
    """

    text: str
    place: int = 0


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes:
        title: heading; may be empty.
        header: names of the columns; the first column holds names, the others numbers.
        rows: the cells.
        note: sentence below the table.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def to_markdown(self) -> str:
        """Best in bold, second best in italics."""
        marks = {_FIRST: "**{}**", _SECOND: "_{}_"}
        lines = [_markdown_line(map(in_markdown, self.header)), "|---" + "|---:" * (len(self.header) - 1) + "|"]
        lines += [_markdown_line([_marked(cell, marks, in_markdown) for cell in row]) for row in self.rows]
        title = f"### {in_markdown(self.title)}"
        return "\n".join([title, "", *lines, *([""] if self.note else []), *filter(None, [in_markdown(self.note)])])

    def to_latex(self) -> str:
        """A `table` with booktabs; best in bold, second best underlined."""
        marks = {_FIRST: r"\textbf{{{}}}", _SECOND: r"\underline{{{}}}"}
        lines = [" & ".join(map(in_latex, self.header)) + r" \\", r"\midrule"]
        lines += [" & ".join(_marked(cell, marks, in_latex) for cell in row) + r" \\" for row in self.rows]
        caption = in_latex(". ".join(filter(None, [self.title, self.note])))
        columns = "l" + "r" * (len(self.header) - 1)
        return "\n".join(
            [r"\begin{table}", r"\centering", f"\\caption{{{caption}}}", f"\\begin{{tabular}}{{{columns}}}"]
            + [r"\toprule", *lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        )

    def to_html(self) -> str:
        """A `<table>` in a `<figure>`, below its title; best in bold, second best underlined."""
        marks = {_FIRST: "<strong>{}</strong>", _SECOND: "<u>{}</u>"}
        head = "".join(f'<th scope="col">{in_html(name)}</th>' for name in self.header)
        lines = []
        for first, *others in self.rows:
            cells = "".join(
                f"<td{' class=long' if len(cell.text) > _LONG else ''}>{_marked(cell, marks, in_html)}</td>"
                for cell in others
            )
            lines.append(f'<tr><th scope="row">{_marked(first, marks, in_html)}</th>{cells}</tr>')
        note = f"<figcaption>{in_html(self.note)}</figcaption>" if self.note else ""
        title = f"<h3>{in_html(self.title)}</h3>\n" if self.title else ""
        body = "\n".join(lines)
        return (
            f"{title}<figure><div class=scroll><table><thead><tr>{head}</tr></thead>\n"
            f"<tbody>\n{body}\n</tbody></table></div>{note}</figure>"
        )


def places(values: Sequence[float], bigger: bool = True) -> list[int]:
    """Place 1 or 2 of every value, 0 for the others and for NaN; equal values share a place.

    With a single value there is nothing to mark.
    """
    numbers = np.asarray(values, dtype=np.float64) * (1 if bigger else -1)
    known = np.unique(numbers[~np.isnan(numbers)])[::-1]
    if np.count_nonzero(~np.isnan(numbers)) < 2:
        return [0] * len(numbers)
    marked = {value: place for place, value in enumerate(known[:_SECOND], start=1)}
    return [marked.get(number, 0) for number in numbers]


def _marked(cell: Cell, marks: dict[int, str], escape: Callable[[str], str]) -> str:
    return marks.get(cell.place, "{}").format(escape(cell.text))


def _markdown_line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
