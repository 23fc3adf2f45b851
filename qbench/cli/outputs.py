"""Where the result of a comparison goes: the terminal, and the files and marks that a CI system reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qbench.cli.console import print_json, print_note, print_text
from qbench.errors import QbenchError

if TYPE_CHECKING:
    from qbench.compare.regressions import Check


class Annotations(str, Enum):
    """Whose marks on a pull request are printed."""

    none = "none"
    github = "github"


SummaryOption = Annotated[
    Path | None, typer.Option(help="Append a Markdown summary to this file, as $GITHUB_STEP_SUMMARY.")
]
JunitOption = Annotated[Path | None, typer.Option(help="Write JUnit XML: each point is a test case.")]
SarifOption = Annotated[Path | None, typer.Option(help="Write SARIF 2.1.0 for code scanning.")]
AnnotationsOption = Annotated[
    Annotations, typer.Option(help="github marks each finding at its line of the baseline.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What was asked for."""

    as_json: bool = False
    summary: Path | None = None
    junit: Path | None = None
    sarif: Path | None = None
    annotations: Annotations = Annotations.none


def tell(found: Check, code: int, outputs: Outputs, *, places: Path, strict: bool = False) -> None:
    """Print a comparison and write the files that were asked for.

    `places` is the run or file at whose lines findings are marked. Raises QbenchError when a file cannot be
    written; nothing is printed then.
    """
    from qbench.report.gate import check_document

    _write_files(found, code, outputs, places, strict)
    if outputs.as_json:
        print_json(check_document(found, code))
    else:
        _print_check(found, code)
    if outputs.annotations is Annotations.github:
        _print_annotations(found, outputs, places, strict)


def tell_failure(reason: str, outputs: Outputs) -> None:
    """Mark in GitHub, where it was asked for, why there is no comparison."""
    if outputs.annotations is Annotations.github:
        from qbench.report.annotations import failure_annotation

        (print_note if outputs.as_json else print_text)(failure_annotation(reason))
    if outputs.summary is not None:
        _write("--summary", outputs.summary, f"### qbench check: not comparable\n\n{reason}\n".encode(), "ab")


def _write_files(found: Check, code: int, outputs: Outputs, places: Path, strict: bool) -> None:
    if outputs.summary is not None:
        from qbench.report.gate import summary_markdown

        _write("--summary", outputs.summary, summary_markdown(found, code).encode(), "ab")
    if outputs.junit is not None:
        from qbench.report.junit import junit_xml

        _write("--junit", outputs.junit, junit_xml(found, strict=strict), "wb")
    if outputs.sarif is not None:
        from qbench.records.document import record_places
        from qbench.report.sarif import sarif_document

        document = sarif_document(found, record_places(places), strict=strict)
        _write("--sarif", outputs.sarif, json.dumps(document, indent=1).encode() + b"\n", "wb")


def _write(flag: str, file: Path, content: bytes, mode: str) -> None:
    try:
        with file.open(mode) as stream:
            stream.write(content)
    except OSError as error:
        raise QbenchError(f"{flag}: {file} cannot be written ({error.strerror}); name another") from error


def _print_check(found: Check, code: int) -> None:
    from qbench.report.gate import finding_lines, verdict_lines

    lines = finding_lines(found)
    for line in (*lines, *([""] if lines else []), *verdict_lines(found, code)):
        print_text(line)


def _print_annotations(found: Check, outputs: Outputs, places: Path, strict: bool) -> None:
    from qbench.records.document import record_places
    from qbench.report.annotations import github_annotations

    # GitHub reads both streams, and a JSON document must be alone on its.
    show: Callable[[str], None] = print_note if outputs.as_json else print_text
    for line in github_annotations(found, record_places(places), strict=strict):
        show(line)
