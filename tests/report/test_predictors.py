"""Other predictors beside qbench: the same measurements, each tool over what it can express."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from qbench.catalog.predictions import OtherPrediction
from qbench.comparison.accuracy import FigureComparison
from qbench.report.accuracy import write_accuracy
from qbench.report.predictors import (
    beside,
    error_text,
    errors_table,
    predictors_part,
    rows_table,
    tools_table,
)
from qbench.units import GIB


def comparison(row_id: str, figure: str, measured: int, planned: int) -> FigureComparison:
    return FigureComparison(
        id=row_id,
        group="lab",
        figure=figure,
        unit="bytes",
        measured=measured,
        planned=planned,
        run=f"run of {row_id}",
        gpu="L40S",
        stack="torch 2.13",
        conditions="packed",
        source="lab/results.json",
    )


def answer(tool: str, row_id: str, size: int | None, quantity: str = "total") -> OtherPrediction:
    return OtherPrediction(
        tool=tool,
        version="1.2",
        asked_on="2026-11-24",
        id=row_id,
        quantity=quantity if size is not None else "",
        predicted_bytes=size,
        how="ask(rank=8)" if size is not None else "no quantized models",
    )


FOUND = [
    comparison("a", "max_allocated", 100 * GIB, 101 * GIB),
    comparison("b", "max_allocated", 200 * GIB, 199 * GIB),
    comparison("c", "max_allocated", 50 * GIB, 50 * GIB),
    comparison("d", "max_reserved_first_step", 10 * GIB, 10 * GIB),
    comparison("e", "allocated_after_load", 1 * GIB, 1 * GIB),
]
ANSWERS = beside(
    FOUND,
    [
        answer("wide", "a", 110 * GIB),
        answer("wide", "b", 140 * GIB),
        answer("wide", "c", 51 * GIB),
        answer("wide", "d", 20 * GIB, "total with slack"),
        answer("narrow", "a", None),
        answer("narrow", "b", 202 * GIB),
        answer("narrow", "c", None),
        answer("narrow", "d", None),
        answer("narrow", "of another catalog", 1),
    ],
)
ALLOCATED = [found for found in ANSWERS if found.found.figure == "max_allocated"]


def test_answers_about_nothing_compared_are_passed_over() -> None:
    assert len(ANSWERS) == 8
    assert {found.found.id for found in ANSWERS} == {"a", "b", "c", "d"}


def test_errors_are_over_what_a_tool_can_express() -> None:
    assert errors_table(ALLOCATED).rows == (
        # +1, -0.5 and 0 %.
        ("qbench", "3 of 3", "0.50 %", "+1.00 %", "", ""),
        # +10, -30 and +2 %.
        ("wide", "3 of 3", "10.00 %", "-30.00 %", "0.50 %", "+1.00 %"),
        # +1 %, where qbench is 0.5 % below.
        ("narrow", "1 of 3", "1.00 %", "+1.00 %", "0.50 %", "-0.50 %"),
    )


def test_tool_without_any_answer_has_no_errors() -> None:
    reserved = [found for found in ANSWERS if found.found.id == "d"]
    assert errors_table(reserved).rows[2] == ("narrow", "0 of 1", None, None, None, None)


def test_every_measurement_has_a_cell_for_every_tool() -> None:
    table = rows_table(ALLOCATED)
    assert [column.title for column in table.columns][3:] == ["qbench", "wide", "narrow"]
    assert table.rows[0] == (
        "a",
        "run of a, L40S",
        "100.00 GiB",
        "101.00 GiB (+1.00 %)",
        "110.00 GiB (+10.00 %)",
        None,
    )
    assert table.rows[1][5] == "202.00 GiB (+1.00 %)"


def test_tools_say_what_they_predict_and_why_not() -> None:
    assert tools_table(ANSWERS).rows == (
        ("wide", "1.2", "total", "total with slack", ""),
        ("narrow", "1.2", "total", "", "no quantized models"),
    )


@pytest.mark.parametrize(
    ("percent", "text"), [(-30.0, "-30.00 %"), (0.36, "+0.36 %"), (-0.001, "0.00 %"), (0.0, "0.00 %")]
)
def test_error_has_its_sign(percent: float, text: str) -> None:
    assert error_text(percent) == text


def test_part_has_a_section_for_each_quantity_measured() -> None:
    headings = [part for part in predictors_part(ANSWERS) if part.startswith("#")]
    assert headings == ["## Beside other predictors", "### Peak allocated", "### Peak reserved"]
    assert "2026-11-24" in predictors_part(ANSWERS)[1]
    assert [part for part in predictors_part(ALLOCATED) if part.startswith("###")] == ["### Peak allocated"]
    assert predictors_part([]) == []


def test_report_has_the_part_and_a_file_of_its_own(tmp_path: Path) -> None:
    others = [found.other for found in ANSWERS]
    page, _, table = write_accuracy(FOUND, [], "torch 2.99", tmp_path, others)
    assert "| narrow | 1 of 3 | 1.00 % |" in page.read_text(encoding="utf-8")
    assert table.name == "predictors.csv"
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 8
    assert rows[1]["error_percent"] == "-30.0"
    assert (rows[1]["qbench_error_percent"], rows[1]["measured_bytes"]) == ("-0.5", str(200 * GIB))
    assert (rows[4]["predicted_bytes"], rows[4]["error_percent"]) == ("", "")
    assert rows[4]["how"] == "no quantized models"
