"""A check as GitHub's workflow commands, which show findings beside the files of a pull request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import Literal

from qbench.comparison.check import Check, Finding
from qbench.records.document import RecordPlaces
from qbench.report.ci.check import finding_text, point_text, told_findings

Level = Literal["error", "warning", "notice"]

MOST_OF_A_LEVEL = 10
"""GitHub shows ten errors, ten warnings and ten notices of a step and silently drops the rest."""


def level_of(finding: Finding, strict: bool) -> Level:
    """Return how grave a finding is: what fails the check, what could not be judged, and the rest."""
    if finding.fails_if(strict) or finding.verdict == "not comparable":
        return "error"
    return "warning" if finding.gated and finding.verdict == "ambiguous" else "notice"


def github_annotations(check: Check, places: RecordPlaces, *, strict: bool = False) -> list[str]:
    """Return a workflow command for each gated finding that is not 'same', at its line of the baseline.

    GitHub takes a file as relative to the root of the repository. One with an absolute path lies outside,
    where nothing would be shown beside it, so the message names it.
    """
    commands: dict[Level, list[str]] = {"error": [], "warning": [], "notice": []}
    for finding in told_findings(check):
        if finding.gated:
            level = level_of(finding, strict)
            commands[level].append(_command(level, finding, places))
    return [line for level, lines in commands.items() for line in _first(level, lines)]


def failure_annotation(reason: str) -> str:
    """Return a workflow command that says why nothing was compared."""
    return f"::error title=qbench::{_data(reason)}"


def _first(level: Level, lines: list[str]) -> Iterator[str]:
    if len(lines) <= MOST_OF_A_LEVEL:
        yield from lines
        return
    yield from lines[: MOST_OF_A_LEVEL - 1]
    yield f"::{level} title=qbench::{len(lines) - MOST_OF_A_LEVEL + 1} more; the summary and --json list them"


def _command(level: Level, finding: Finding, places: RecordPlaces) -> str:
    line = places.line(finding.kind, finding.point.point_id)
    properties, text = {"title": f"qbench: {point_text(finding)}"}, finding_text(finding)
    if PurePath(places.file).is_absolute():
        text += f"; line {line} of {places.file}"
    else:
        properties = {"file": places.file, "line": str(line), **properties}
    listed = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::{level} {listed}::{_data(text)}"


def _data(text: str) -> str:
    """Escape the message of a command (actions/toolkit, packages/core/src/command.ts, escapeData)."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """Escape the value of a property (the same file, escapeProperty)."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")
