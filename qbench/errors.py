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


class QbenchError(Exception):
    """Base of all errors that a user can cause or must act on."""

    exit_code = 2


class ScenarioError(QbenchError):
    """One or more problems of a scenario; `problems` holds one line for each."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


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
