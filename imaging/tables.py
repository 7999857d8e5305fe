"""One table, three ways: text for the screen, CSV for programs, LaTeX for papers; and the page that holds it."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, Sequence

from .bootstrap import Estimate
from .files import write_text

Row = dict[str, Any]  # column → Estimate, number, text or None

_ESCAPES = {"\\": r"\textbackslash{}", **{c: "\\" + c for c in "&%$#_{}"}, "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_SYMBOLS = {"ω": r"$\omega$", "ε": r"$\varepsilon$", "²": r"$^2$", "−": "$-$", "·": r"$\cdot$", "↑": r"$\uparrow$", "↓": r"$\downarrow$"}


def text(rows: Sequence[Row]) -> str:
    """Aligned columns, also valid as a Markdown table; '–' where a row has no value."""
    columns = _columns(rows)
    cells = [columns, *[[_show(row.get(column)) for column in columns] for row in rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def to_csv(rows: Sequence[Row]) -> str:
    """A column each for the value and for the ends of its interval, unrounded."""
    flat = [_flatten(row) for row in rows]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(dict.fromkeys(key for row in flat for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return buffer.getvalue()


def latex(rows: Sequence[Row]) -> str:
    """A booktabs tabular, intervals small beside their values."""
    columns = _columns(rows)
    head = " & ".join(map(_escape, columns)) + r" \\"
    body = [" & ".join(_latex_cell(row.get(column)) for column in columns) + r" \\" for row in rows]
    align = "l" + "r" * (len(columns) - 1)
    return "\n".join([rf"\begin{{tabular}}{{{align}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"])


def without_empty(rows: Sequence[Row]) -> list[Row]:
    """The rows without the columns in which no row has a value."""
    kept = [column for column in _columns(rows) if any(row.get(column) is not None for row in rows)]
    return [{column: row.get(column) for column in kept} for row in rows]


def write(folder: Path, name: str, rows: Sequence[Row]) -> None:
    """name.md, name.csv and name.tex in the folder."""
    for suffix, render in {"md": text, "csv": to_csv, "tex": latex}.items():
        write_text(folder / f"{name}.{suffix}", render(rows).rstrip("\n") + "\n")


BEGIN, END = "<!-- written by a command: begin -->", "<!-- written by a command: end -->"


def write_page(path: Path, text: str) -> None:
    """Write text to `path`. In a page that holds a line BEGIN and a line END only what stands between them changes."""
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    body = text.strip("\n")
    whole = f"{before}{BEGIN}\n\n{body}\n\n{END}{after}" if begin and end else f"{body}\n"
    write_text(path, whole)


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row))


def _show(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _flatten(row: Row) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for column, value in row.items():
        if isinstance(value, Estimate):
            flat |= {column: value.value, f"{column} low": value.low, f"{column} high": value.high}
        else:
            flat[column] = value
    return flat


def _latex_cell(value: Any) -> str:
    if isinstance(value, Estimate):
        return rf"{value.value:.3f} {{\scriptsize {value.interval}}}"
    return "--" if value is None else _escape(_show(value))


def _escape(value: str) -> str:
    return "".join(_ESCAPES.get(c, _SYMBOLS.get(c, c)) for c in value)
