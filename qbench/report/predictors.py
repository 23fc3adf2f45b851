"""Other public predictors beside qbench, on the same published measurements."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qbench.catalog.predictions import OtherPrediction
from qbench.comparison.accuracy import FigureComparison
from qbench.records.metrics import METRICS
from qbench.report.markdown import table_text
from qbench.report.table import Column, Table, Value, plain_table
from qbench.units import format_value

QUANTITIES = {
    METRICS["peak_allocated_bytes"].title: ("max_allocated",),
    METRICS["peak_reserved_bytes"].title: ("max_reserved", "max_reserved_first_step"),
}
"""Figures of the catalog that tell of one quantity."""

READ_WITH_CARE = (
    "The steps are those that qbench can plan as they were run; what it leaves out is below, with reasons. "
    "qbench has no fitted constants, but these measurements were at hand while it was developed.",
    "Tools differ in what they predict. Each is compared with the measured peak that its figure describes; "
    "where it keeps the CUDA context or a safety margin apart, these are left out.",
    "The tools take neither versions of libraries nor the kernels that torch had: qbench plans the `cift` "
    "runs, measured on Windows, without flash attention. They were given SDPA, or flash where they have "
    "no SDPA.",
    "`canifinetune` is of the project that measured the `cift` runs, and its formulas draw on such runs.",
    "`fitcheck-llm` states its accuracy for a Tesla T4 with checkpointing, `vramcalc` for an RTX A6000. "
    "Other steps and cards are outside what they claim.",
    "`hf-vram-calc` takes batch and length, but its figures for training and LoRA follow from weights alone.",
)
"""What a reader should know before comparing the columns."""

_TEXT = "text"
"""Unit of columns whose cells are text already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """One tool's answer beside the measurement and qbench's plan."""

    found: FigureComparison
    other: OtherPrediction

    @property
    def error_percent(self) -> float | None:
        """Prediction less measurement in percent of the measurement; None without a prediction."""
        if self.other.predicted_bytes is None:
            return None
        return 100 * (self.other.predicted_bytes - self.found.measured) / self.found.measured

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as plain values, with both errors."""
        return {
            "tool": self.other.tool,
            "version": self.other.version,
            "asked_on": self.other.asked_on,
            "id": self.found.id,
            "figure": self.found.figure,
            "quantity": self.other.quantity,
            "predicted_bytes": self.other.predicted_bytes,
            "measured_bytes": self.found.measured,
            "error_percent": self.error_percent,
            "qbench_bytes": self.found.planned,
            "qbench_error_percent": self.found.error_percent,
            "how": self.other.how,
        }


def beside(comparisons: Iterable[FigureComparison], others: Iterable[OtherPrediction]) -> list[Beside]:
    """Return each tool's answer beside its measurement; answers for anything not compared are passed over."""
    by_id = {found.id: found for found in comparisons}
    return [Beside(found=by_id[other.id], other=other) for other in others if other.id in by_id]


def predictors_part(answers: Sequence[Beside]) -> list[str]:
    """Return the part of the accuracy report on other predictors, nothing when there are no answers."""
    if not answers:
        return []
    parts = [
        "## Beside other predictors",
        f"Public tools that run offline were given the same steps on {_dates(answers)} by "
        "`python -m benchmarks.predictors`. A step that was measured again counts once. Median and worst are "
        "over the figures that a tool can express, and beside them are qbench's over the same ones. How each "
        "was called is in predictors.csv.",
        table_text(tools_table(answers)),
        "\n".join(f"- {sentence}" for sentence in READ_WITH_CARE),
    ]
    for quantity, figures in QUANTITIES.items():
        members = [answer for answer in answers if answer.found.figure in figures]
        if members:
            parts += [f"### {quantity}", table_text(errors_table(members)), table_text(rows_table(members))]
    return parts


def _dates(answers: Iterable[Beside]) -> str:
    return ", ".join(sorted({answer.other.asked_on for answer in answers}))


def tools_table(answers: Sequence[Beside]) -> Table:
    """Return one row for each tool: version, its figure for each quantity, and reasons for no answer."""
    rows = []
    for tool, members in _by_tool(answers).items():
        taken = [
            dict.fromkeys(a.other.quantity for a in members if a.found.figure in figures and a.other.quantity)
            for figures in QUANTITIES.values()
        ]
        reasons = dict.fromkeys(a.other.how for a in members if a.other.predicted_bytes is None)
        rows.append((tool, members[0].other.version, *("; ".join(texts) for texts in (*taken, reasons))))
    titles = ("Tool", "Version", *(f"{name} is its" for name in QUANTITIES), "No answer because")
    return plain_table(titles, rows)


def errors_table(answers: Sequence[Beside]) -> Table:
    """Return the errors of each tool over the figures that it can express, and qbench's over the same."""
    rows: list[tuple[Value, ...]] = []
    everything = list({answer.found.id: answer.found.error_percent for answer in answers}.values())
    rows.append(("qbench", f"{len(everything)} of {len(everything)}", *_errors(everything), "", ""))
    for tool, members in _by_tool(answers).items():
        told = [answer for answer in members if answer.error_percent is not None]
        ours = _errors([answer.found.error_percent for answer in told])
        theirs = _errors([answer.error_percent for answer in told if answer.error_percent is not None])
        rows.append((tool, f"{len(told)} of {len(members)}", *theirs, *ours))
    titles = ("Median of absolute errors", "Worst error", "qbench: median", "qbench: worst")
    columns = (Column("Tool"), Column("Figures"), *(Column(title, _TEXT) for title in titles))
    return Table(columns=columns, rows=tuple(rows))


def _errors(errors: Sequence[float]) -> tuple[str | None, str | None]:
    """Return the median of absolute errors and the worst error as text."""
    if not errors:
        return None, None
    return f"{statistics.median(map(abs, errors)):.2f} %", error_text(max(errors, key=abs))


def rows_table(answers: Sequence[Beside]) -> Table:
    """Return one row for each measurement: measured, planned by qbench, and predicted by every tool."""
    members: dict[str, dict[str, Beside]] = {}
    for answer in answers:
        members.setdefault(answer.found.id, {})[answer.other.tool] = answer
    tools = list(_by_tool(answers))
    rows = []
    for row_id, by_tool in members.items():
        found = next(iter(by_tool.values())).found
        cells = [_cell(by_tool.get(tool)) for tool in tools]
        planned = _amount(found.planned, found.error_percent)
        rows.append((row_id, f"{found.run}, {found.gpu}", _bytes(found.measured), planned, *cells))
    numbers = (Column(title, _TEXT) for title in ("Measured", "qbench", *tools))
    return Table(columns=(Column("Measurement"), Column("Run"), *numbers), rows=tuple(rows))


def _cell(answer: Beside | None) -> str | None:
    if answer is None or answer.other.predicted_bytes is None or answer.error_percent is None:
        return None
    return _amount(answer.other.predicted_bytes, answer.error_percent)


def _amount(size: int, error: float) -> str:
    return f"{_bytes(size)} ({error_text(error)})"


def _bytes(size: int) -> str:
    return format_value(size, "bytes")


def error_text(percent: float) -> str:
    """Return an error with its sign and two decimals; what rounds to 0 has no sign."""
    rounded = round(percent, 2)
    return f"{rounded:+.2f} %" if rounded else "0.00 %"


def _by_tool(answers: Iterable[Beside]) -> dict[str, list[Beside]]:
    tools: dict[str, list[Beside]] = {}
    for answer in answers:
        tools.setdefault(answer.other.tool, []).append(answer)
    return tools
