"""Text from outside, such as the names of models and data sets, in the formats of reports: it stays text."""

from __future__ import annotations

import html
import re

import pandas as pd

_GAPS = re.compile(r"[\x00-\x1f\x7f-\x9f\s]+")  # spaces, breaks of lines, control characters
# What Markdown or HTML in it would read as more than text. An underscore within a word is text.
_MARKDOWN = re.compile(r"[\\|*\[\]<>&`~]|(?<!\w)_|_(?!\w)")
_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"±": r"$\pm$", "≥": r"$\geq$", "–": "--", "<": r"$<$", ">": r"$>$"},
    **{"[": "{[}", "*": "{*}"},  # after the end of a row these would be its options
}
_FORMULA = r"[=+\-@\t\n]"  # how a text begins that a spreadsheet computes


def one_line(text: str) -> str:
    """Text without breaks of lines and control characters."""
    return _GAPS.sub(" ", text).strip()


def in_markdown(text: str) -> str:
    """Text for Markdown, also in a cell of a table."""
    return _MARKDOWN.sub(r"\\\g<0>", one_line(text))


def in_latex(text: str) -> str:
    """Text for LaTeX, also in a cell of a table."""
    return "".join(_LATEX.get(character, character) for character in one_line(text))


def in_html(text: str) -> str:
    """Text for HTML and for plots, whose titles and names plotly reads as HTML."""
    return html.escape(one_line(text))


def in_csv(table: pd.DataFrame) -> pd.DataFrame:
    """A table for spreadsheets: an apostrophe before a text keeps it from being a formula. Numbers stay."""
    texts = table.select_dtypes(include=["object", "string"])
    return table.assign(**{name: _without_formulas(column) for name, column in texts.items()})


def _without_formulas(column: pd.Series) -> pd.Series:
    column = column.astype(object)
    is_text = column.map(type).eq(str)
    texts = column[is_text].astype("string").str.replace(r"\r\n?", "\n", regex=True)  # pandas quotes `\n` alone
    column[is_text] = texts.mask(texts.str.match(_FORMULA), "'" + texts).astype(object)
    return column
