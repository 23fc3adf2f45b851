"""The type of all tables: columns with units, rows of raw values, notes. Writers turn them into text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from qbench.units import NOT_AVAILABLE, format_value, plain_text

NAMED_RANGES = 8


class RecordRanges(NamedTuple):
    """The numbers of the records behind a row or a chart."""

    ranges: tuple[tuple[int, int], ...]
    """First and last number of each range, at most NAMED_RANGES of them."""
    more: int = 0
    """How many records lie beyond these ranges."""

    def __str__(self) -> str:
        return ", ".join([*map(range_text, self.ranges), *([f"and {self.more:,} more"] if self.more else [])])


def range_text(numbers: tuple[int, int]) -> str:
    """Return a range of numbers as text: '3', '14-16'."""
    first, last = numbers
    return str(first) if first == last else f"{first}-{last}"


Value = str | int | float | bool | RecordRanges | None


@dataclass(frozen=True, slots=True)
class Column:
    """One column; `unit` is that of qbench.units.format_value, empty for text and plain numbers."""

    title: str
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Raw values by row and column; None is unknown."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    notes: tuple[str, ...] = ()

    def first(self, count: int) -> Table:
        """Return the table cut to `count` rows, with a note where rows were left out."""
        if len(self.rows) <= count:
            return self
        note = f"The first {count:,} of {len(self.rows):,} rows are shown; all records are in report.csv."
        return Table(columns=self.columns, rows=self.rows[:count], notes=(*self.notes, note))

    def texts(self) -> Iterator[list[str]]:
        """Yield each row as the texts of its cells."""
        for row in self.rows:
            yield [cell_text(value, column.unit) for value, column in zip(row, self.columns, strict=True)]


def plain_table(titles: Iterable[str], rows: Iterable[tuple[Value, ...]], notes: Iterable[str] = ()) -> Table:
    """Return a table of texts and plain numbers, whose columns have no units."""
    return Table(columns=tuple(map(Column, titles)), rows=tuple(rows), notes=tuple(notes))


@dataclass(slots=True)
class Draft:
    """A table in the making; columns in which no row has a value are dropped."""

    columns: list[Column] = field(default_factory=list)
    values: list[list[Value]] = field(default_factory=list)

    def add(self, title: str, values: Iterable[Value], unit: str = "") -> None:
        """Add a column of values, one for each row."""
        listed = list(values)
        if any(value not in (None, "") for value in listed):
            self.columns.append(Column(title, unit))
            self.values.append(listed)

    def has(self, title: str) -> bool:
        """Say whether a column was kept."""
        return any(column.title == title for column in self.columns)

    def table(self, *notes: str) -> Table | None:
        """Return the table; None when no column has a value."""
        if not self.columns:
            return None
        return Table(columns=tuple(self.columns), rows=tuple(zip(*self.values, strict=True)), notes=notes)


def cell_text(value: Value, unit: str) -> str:
    """Return a cell as text; numbers with a unit go through qbench.units, unknown is n/a."""
    if value is None:
        return NOT_AVAILABLE
    if isinstance(value, RecordRanges):
        return str(value)
    if isinstance(value, (str, bool)) or (isinstance(value, int) and not unit):
        return plain_text(value)
    return _ratio_text(value, unit) if unit in ("%", "x") else format_value(value, unit)


def _ratio_text(value: float, unit: str) -> str:
    """Three digits of a share, two decimals of a factor, zeros kept to line up; a bare 0 is exactly none."""
    digits = max(0, 3 - len(str(int(abs(value))))) if abs(value) >= 1 else 3
    digits = min(digits, 2) if unit == "x" else digits
    return f"{value:.{digits}f} {unit}" if value else f"0 {unit}"
