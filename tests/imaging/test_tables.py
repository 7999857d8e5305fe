"""One table in three formats that other programs read."""

import csv
import io

from imaging import tables
from imaging.bootstrap import Estimate

ROWS = [
    {"set": "LMC_1 & 100%", "n": 3, "ω": 0.5, "score": Estimate(0.25, 0.2, 0.3, 3), "other": None},
    {"set": "SDS", "n": 4, "ω": 1.0, "score": Estimate(1 / 3, 0.1, 0.5, 4), "other": 2.0},
]


def test_text_is_aligned_and_says_where_nothing_is():
    lines = tables.text(ROWS).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == 4
    assert "0.250 [0.200, 0.300]" in lines[2] and "–" in lines[2] and "2.000" in lines[3]


def test_csv_keeps_full_precision_and_the_interval_in_columns():
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(ROWS))))
    assert float(rows[1]["score"]) == 1 / 3 and float(rows[1]["score high"]) == 0.5 and rows[0]["other"] == ""


def test_latex_escapes_and_closes():
    lines = tables.latex(ROWS).splitlines()
    assert lines[0] == r"\begin{tabular}{lrrrr}" and lines[-1] == r"\end{tabular}"
    assert r"LMC\_1 \& 100\%" in lines[4] and r"$\omega$" in lines[2] and r"{\scriptsize [0.200, 0.300]}" in lines[4]
    assert all(line.count(" & ") == 4 for line in lines if line.endswith(r"\\"))


def test_columns_without_any_value_go():
    rows = tables.without_empty([{"a": 1, "b": None, "c": None}, {"a": None, "b": None, "c": 2.0}])
    assert rows == [{"a": 1, "c": None}, {"a": None, "c": 2.0}]


def test_files(tmp_path):
    tables.write(tmp_path / "new", "t", ROWS)
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"t.md", "t.csv", "t.tex"}


def test_a_page_with_marks_keeps_what_people_wrote(tmp_path):
    page = tmp_path / "docs" / "page.md"
    tables.write_page(page, "one\n")
    assert page.read_text() == "one\n"
    page.write_text(f"# Title\n\n{tables.BEGIN}\n{tables.END}\n\nWhy.\n")
    for text in ("two\n", "three"):
        tables.write_page(page, text)
        assert page.read_text() == f"# Title\n\n{tables.BEGIN}\n\n{text.strip()}\n\n{tables.END}\n\nWhy.\n"
    page.write_text(f"{tables.BEGIN} and no end\n")
    tables.write_page(page, "four")
    assert page.read_text() == "four\n"
