"""The accuracy report: what is compared, how far off, and what is left out with its reason."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from qbench.catalog.published import NotCompared
from qbench.comparison.accuracy import FigureComparison
from qbench.errors import RecordError
from qbench.report.accuracy import (
    amount_text,
    comparison_table,
    error_text,
    summary_table,
    write_accuracy,
)
from qbench.report.table import cell_text
from qbench.units import GIB

FOUND = [
    FigureComparison(
        id="lab-1",
        group="lab",
        figure="max_allocated",
        unit="bytes",
        measured=2 * GIB,
        planned=2 * GIB - GIB // 100,
        run="Llama-2-7b-hf nf4 r=16 b=1 s=8 saved",
        gpu="L40S",
        stack="torch 2.13",
        conditions="packed",
        source="lab/results.json",
    ),
    FigureComparison(
        id="lab-2",
        group="lab",
        figure="total_params",
        unit="count",
        measured=1000,
        planned=1000,
        run="Llama-2-7b-hf nf4 r=16 b=1 s=8 saved",
        gpu="L40S",
        stack="torch 2.13",
        conditions="packed",
        source="lab/results.json",
    ),
]
LEFT_OUT = [NotCompared(group="shop", part="", rows=7, source="shop/README.md", reason="Two GPUs.")]


def test_terminal_table_fits_100_columns() -> None:
    table = comparison_table(FOUND)
    assert table.rows[0] == ("lab-1", "max_allocated", "2.0000 GiB", "1.9900 GiB", "-0.500 %")
    assert table.rows[1][2:] == ("1,000", "1,000", "0 %")
    assert all(
        cell_text(value, column.unit) == value
        for value, column in zip(table.rows[0], table.columns, strict=True)
    )


@pytest.mark.parametrize(
    ("percent", "text"),
    [(-0.5, "-0.500 %"), (1.23456, "+1.235 %"), (0.0, "0 %"), (-0.0001, "0.000 %"), (0.0001, "0.000 %")],
)
def test_error_has_its_sign(percent: float, text: str) -> None:
    assert error_text(percent) == text


def test_amount_has_the_decimals_of_its_sources() -> None:
    assert amount_text(round(3.0324 * GIB), "bytes") == "3.0324 GiB"
    assert amount_text(9_175_040, "count") == "9,175,040"


def test_summary_is_by_group_and_figure() -> None:
    assert summary_table(FOUND).rows[0] == ("lab", "max_allocated", 1, "0.500 %", "-0.500 %")


def test_files_hold_every_figure_and_every_reason(tmp_path: Path) -> None:
    paths = write_accuracy(FOUND, LEFT_OUT, "torch 2.99", tmp_path / "deep" / "accuracy")
    page, table = (path.read_text(encoding="utf-8") for path in paths)
    assert [path.name for path in paths] == ["accuracy.md", "accuracy.csv"]
    for text in (
        "torch 2.99",
        "lab-1",
        "lab-2",
        "lab/results.json",
        "-0.500 %",
        "Two GPUs.",
        "| shop | all | 7 |",
    ):
        assert text in page
    rows = list(csv.DictReader(table.splitlines()))
    assert [row["id"] for row in rows] == ["lab-1", "lab-2"]
    assert int(rows[0]["planned"]) - int(rows[0]["measured"]) == -(GIB // 100)
    assert float(rows[0]["error_percent"]) == pytest.approx(-0.5)


def test_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="name another folder with --out"):
        write_accuracy(FOUND, LEFT_OUT, "torch 2.99", tmp_path / "file" / "accuracy")
