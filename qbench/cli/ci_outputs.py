"""Where the result of a comparison goes: the terminal, and the files and marks that a CI system reads."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qbench.cli.console import print_command, print_json, print_note, print_text
from qbench.errors import QbenchError

if TYPE_CHECKING:
    from qbench.comparison.check import Check
    from qbench.records.document import RecordPlaces


class Annotations(str, Enum):
    """Whose marks on a pull request are printed."""

    none = "none"
    github = "github"


SummaryOption = Annotated[
    Path | None,
    typer.Option(help="Append a Markdown summary to this file, for example $GITHUB_STEP_SUMMARY."),
]
JunitOption = Annotated[Path | None, typer.Option(help="Write JUnit XML: each point is a test case.")]
SarifOption = Annotated[Path | None, typer.Option(help="Write SARIF 2.1.0 for code scanning.")]
AnnotationsOption = Annotated[
    Annotations, typer.Option(help="github annotates each finding at its line of the baseline file.")
]


SUMMARY_NOTICE = b"\n\nThe rest is left out: a step's summary holds 1 MiB. `--json` has all.\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What to write, and where."""

    as_json: bool = False
    summary: Path | None = None
    junit: Path | None = None
    sarif: Path | None = None
    annotations: Annotations = Annotations.none
    verb: str = "check"
    """The command, which titles the summary."""
    advice: tuple[str, ...] = ()
    """Lines below the verdict."""


def tell(found: Check, code: int, outputs: Outputs, *, places: Path, strict: bool = False) -> None:
    """Print a comparison and write the requested files.

    `places` is the run or file at whose lines findings are marked. Raises QbenchError when a file cannot be
    written; nothing is printed then.
    """
    from qbench.report.ci.check import check_document

    _write_files(found, code, outputs, places, strict)
    if outputs.as_json:
        print_json(check_document(found, code))
    else:
        _print_check(found, code, outputs.advice)
    if outputs.annotations is Annotations.github:
        _print_annotations(found, outputs, places, strict)


def tell_failure(reason: str, outputs: Outputs, lines: Sequence[str]) -> None:
    """Write to each requested place, except the terminal, why there is no comparison.

    `lines`, which show what there is instead, go to the terminal and the summary. Raises QbenchError when a
    file cannot be written.
    """
    if outputs.annotations is Annotations.github:
        from qbench.report.ci.annotations import failure_annotation

        print_command(failure_annotation(reason), to_stderr=outputs.as_json)
    if outputs.summary is not None:
        from qbench.report.markdown import escaped

        shown = "".join(f"\n    {line}" for line in lines)
        append_summary(
            outputs.summary,
            f"### qbench check: not comparable\n\n{escaped(reason)}\n{shown and shown + chr(10)}",
        )
    if outputs.junit is not None:
        from qbench.report.ci.junit import failure_junit

        _write("--junit", outputs.junit, failure_junit(reason), "wb")
    if outputs.sarif is not None:
        from qbench.report.ci.sarif import failure_sarif

        _write_json("--sarif", outputs.sarif, failure_sarif(reason))
    if lines and not outputs.as_json:
        print_text("\n".join(lines))


def _write_files(found: Check, code: int, outputs: Outputs, places: Path, strict: bool) -> None:
    if outputs.summary is not None:
        from qbench.report.ci.check import summary_markdown

        append_summary(outputs.summary, summary_markdown(found, code, outputs.verb, outputs.advice))
    if outputs.junit is not None:
        from qbench.report.ci.junit import junit_xml

        _write("--junit", outputs.junit, junit_xml(found, strict=strict), "wb")
    if outputs.sarif is not None:
        from qbench.report.ci.sarif import sarif_document

        document = sarif_document(found, _places(places), strict=strict)
        _write_json("--sarif", outputs.sarif, document)


def append_summary(file: Path, text: str) -> None:
    """Append Markdown to the summary of a step in GitHub Actions, cut at a line where it grew too long.

    Of a file above its limit GitHub shows nothing. Where not even the notice of what is left out fits, or the
    text is empty as nothing of it fits, a line on stderr says so. Raises QbenchError when the file cannot be
    written.
    """
    room = summary_room(file)
    content, longest = text.encode(errors="replace"), room - len(SUMMARY_NOTICE)
    if not content or (len(content) > room and longest < 0):
        print_note(f"--summary: {file} already has the 1 MiB that GitHub shows per step; nothing was added")
        return
    if len(content) > room:
        # A line that ends right behind what is kept is whole.
        content = content[: max(0, content.rfind(b"\n", 0, longest + 1))] + SUMMARY_NOTICE
    _write("--summary", file, content, "ab")


def summary_room(file: Path) -> int:
    """Return how many bytes more the summary of a step may have; below 0 where it has too many already."""
    from qbench.report.markdown import SUMMARY_LIMIT

    # Several commands of one step share its summary.
    return SUMMARY_LIMIT - (file.stat().st_size if file.is_file() else 0)


def _places(path: Path) -> RecordPlaces:
    """Return where records are; the file as GitHub has it, from the root of the repository, or absolute."""
    from qbench.records.document import record_places

    places = record_places(path)
    root = Path(os.environ.get("GITHUB_WORKSPACE") or Path.cwd()).resolve()
    file = Path(places.file).resolve()
    return replace(places, file=(file.relative_to(root) if file.is_relative_to(root) else file).as_posix())


def _write_json(flag: str, file: Path, document: object) -> None:
    _write(flag, file, json.dumps(document, indent=1).encode() + b"\n", "wb")


def _write(flag: str, file: Path, content: bytes, mode: str) -> None:
    try:
        with file.open(mode) as stream:
            stream.write(content)
    except OSError as error:
        raise QbenchError(f"{flag}: {file} cannot be written ({error.strerror}); name another") from error


def _print_check(found: Check, code: int, advice: Sequence[str]) -> None:
    from qbench.report.ci.check import finding_lines, verdict_lines

    lines = finding_lines(found)
    for line in (*lines, *([""] if lines else []), *verdict_lines(found, code, advice)):
        print_text(line)


def _print_annotations(found: Check, outputs: Outputs, places: Path, strict: bool) -> None:
    from qbench.report.ci.annotations import github_annotations

    # GitHub reads both streams, and a JSON document must be alone on its.
    for line in github_annotations(found, _places(places), strict=strict):
        print_command(line, to_stderr=outputs.as_json)
