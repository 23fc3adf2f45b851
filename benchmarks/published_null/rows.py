"""Published figures, and what the null GPU says of them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Answer = Mapping[str, object]
"""Of one run on the null GPU: its outcome, and bytes by the names of figures where it is ok."""
UNITS = {"B": 1, "GiB": 2**30}
FACTS = ("run", "figure", "value", "unit", "source")
"""Columns of every file of rows; the others are settings of the run."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A published figure: its digits as printed, and their unit."""

    name: str
    value: str
    unit: str

    @property
    def bytes(self) -> int:
        return round(float(self.value) * UNITS[self.unit])

    def equals(self, measured: int) -> bool:
        """Say whether bytes are the figure when printed as it is: to the byte, or to its last decimal."""
        if self.unit == "B":
            return measured == int(self.value)
        # Half a unit of the last decimal, of which Python's round may leave out trailing zeros.
        return abs(round(measured / UNITS[self.unit], DECIMALS) - float(self.value)) < 10.0**-DECIMALS / 2


DECIMALS = 4
"""Of every figure in GiB here."""


@dataclass(frozen=True, slots=True)
class Run:
    """One published run: its settings as in the columns of the file, and its figures."""

    name: str
    source: str
    settings: Mapping[str, str]
    figures: list[Figure] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Compared:
    """A figure beside the null GPU's, by order of addresses; none where the run ended without it."""

    run: Run
    figure: Figure
    measured: Mapping[str, int]
    outcome: str

    @property
    def is_equal(self) -> bool:
        """Say whether the figure is that of one order; which the driver took was not published."""
        return any(self.figure.equals(value) for value in self.measured.values())

    @property
    def difference(self) -> int | None:
        """Bytes of the nearest order less those published."""
        found = [value - self.figure.bytes for value in self.measured.values()]
        return min(found, key=abs, default=None)


def read_runs(file: Path) -> list[Run]:
    """Return the runs of a file, in its order."""
    runs: dict[str, Run] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            settings = {name: value for name, value in row.items() if name not in FACTS}
            run = runs.setdefault(row["run"], Run(row["run"], row["source"], settings))
            run.figures.append(Figure(row["figure"], row["value"], row["unit"]))
    return list(runs.values())


def compare(run: Run, answers: Mapping[str, Answer]) -> Iterator[Compared]:
    """Yield each figure of a run beside what the answers by order of addresses say of it."""
    outcome = ", ".join(sorted({str(answer["outcome"]) for answer in answers.values()}))
    for figure in run.figures:
        measured = {
            order: figures[figure.name]
            for order, answer in answers.items()
            if isinstance(figures := answer.get("figures"), dict) and figure.name in figures
        }
        yield Compared(run, figure, measured, outcome)


def counts(compared: Iterable[Compared]) -> tuple[int, int]:
    """Return how many figures are equal, and how many there are."""
    equal = [one.is_equal for one in compared]
    return sum(equal), len(equal)
