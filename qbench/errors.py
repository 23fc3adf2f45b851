"""The error tree. Each class carries the exit code that the command line returns for it.

QbenchError                 2
|-- ScenarioError           2   a scenario file or a point that cannot be read or makes no sense
|-- CatalogError            2   a model, GPU or price that is not known
|-- StepError               2   a training step that cannot be built as the point says
|-- RecordError             2   a stored result that cannot be read or written
|-- NotComparableError      2   two runs that must not be compared
`-- MeasureError            3   a measurement that could not be made

A message says what was given, what is allowed and what to do next, in one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

KeyPath = tuple[str | int, ...]
"""Keys and list indices from the top of a document."""

_LONGEST_VALUE = 60
_ABSENT: Any = object()


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with an input: where, what was given, and what would be right."""

    path: KeyPath = ()
    """Keys and list indices from the top of the file or the settings; empty where no key is to blame."""
    text: str = ""
    """What is wrong, where it is not that a value was given which is not allowed."""
    file: str = ""
    line: int | None = None
    """Line in the file, from 1."""
    given: Any = _ABSENT
    allowed: str = ""
    hint: str = ""
    """The valid value or name that was probably meant."""
    note: str = ""

    @property
    def reason(self) -> str:
        """What is wrong, without where: given, allowed, nearest valid value."""
        parts = [
            self.text or f"given {shown(self.given)}",
            f"allowed: {self.allowed}" if self.allowed else "",
            f"did you mean {self.hint}?" if self.hint else "",
            self.note,
        ]
        return "; ".join(filter(None, parts))

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(filter(None, (place, key_text(self.path), self.reason)))


def key_text(path: KeyPath) -> str:
    """Return a path as text: exclude[0].lora.r."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part if part.isprintable() else ascii(part)}"
    return text.removeprefix(".")


def shown(value: Any) -> str:
    """Return a value as a YAML author knows it, on one line and not too long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


class QbenchError(Exception):
    """Base of all errors that a user can cause or must act on: one or more `problems`, each on one line."""

    exit_code = 2

    def __init__(self, problems: str | Iterable[str | Problem]) -> None:
        listed = (problems,) if isinstance(problems, str) else problems
        self.problems = tuple(each if isinstance(each, Problem) else Problem((), each) for each in listed)
        super().__init__("\n".join(map(str, self.problems)))


class ScenarioError(QbenchError):
    """One or more problems of a scenario, a point or another input."""


class CatalogError(QbenchError):
    """A name that is not in the catalog; `nearest` holds the names in it that look most like it."""

    def __init__(self, message: str, nearest: tuple[str, ...] = ()) -> None:
        self.nearest = nearest
        super().__init__(message)


class StepError(QbenchError):
    """The libraries cannot build the step, or built something other than the point says."""


class RecordError(QbenchError):
    """A stored result that cannot be read or written."""


class NotComparableError(QbenchError):
    """Two results that differ in more than what is being compared."""


class MeasureError(QbenchError):
    """A measurement that could not be made."""

    exit_code = 3


def first_line(error: Exception) -> str:
    """Return the first line of what a library's error says, and the next one where it ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1])
    # A KeyError says no more than the key.
    return text if " " in text else f"{type(error).__name__} {text}".rstrip()


def nearest(given: str, allowed: Iterable[str], count: int = 3) -> list[str]:
    """Return up to `count` allowed names that look most like `given`, best first; case is ignored."""
    by_folded = {name.casefold(): name for name in allowed}
    matches = difflib.get_close_matches(given.casefold(), list(by_folded), n=count, cutoff=0.5)
    return [by_folded[match] for match in matches]
