"""`qbench check`: hold a run against a baseline, and fail when it got worse."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qbench.cli.console import print_json, print_text
from qbench.errors import QbenchError, nearest

if TYPE_CHECKING:
    from qbench.compare.judgements import Tolerance
    from qbench.compare.regressions import Check


def check_command(
    run: Annotated[Path, typer.Argument(help="Run folder, .jsonl file, or JSON of `qbench plan --json`.")],
    baseline: Annotated[Path, typer.Option(help="What it is held against; the same kinds of file.")],
    tolerance: Annotated[
        list[str] | None,
        typer.Option(help="METRIC=1% or METRIC=8MiB; can be repeated. Also gates what is only shown."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on what is ambiguous, too.")] = False,
    summary: Annotated[
        Path | None, typer.Option(help="Append a Markdown summary to this file, as GitHub's step summary.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Hold a run against a baseline: exit 1 when it regressed, 2 when they cannot be compared.

    Parameters and modules must be equal, allocated memory within 1 % or 1 MiB. Speed is judged by an interval
    over processes, and a change must reach 3 %. Reserved memory, energy and loss are shown only.
    """
    from qbench.compare.regressions import check
    from qbench.records.document import read_any
    from qbench.report.gate import check_document

    tolerances = dict(_tolerance(text) for text in tolerance or [])
    found = check(read_any(baseline), read_any(run), tolerances)
    code = found.exit_code(strict)
    if summary is not None:
        _append_summary(found, code, summary)
    if as_json:
        print_json(check_document(found, code))
    else:
        _print_check(found, code)
    return code


def _tolerance(text: str) -> tuple[str, Tolerance]:
    """Return metric and tolerance of a text such as 'peak_allocated_bytes=1%' or 'static_bytes=8MiB'."""
    from qbench.compare.judgements import Tolerance
    from qbench.records.metrics import BREAKDOWN, FACTS, METRICS
    from qbench.units import parse_bytes

    name, _, amount = text.partition("=")
    parts = [f"breakdown_bytes.{category}" for category in BREAKDOWN]
    known = [name for name in METRICS if name != "peak_at"] + parts + [fact.name for fact in FACTS]
    if name not in known:
        close = nearest(name, known, count=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise QbenchError(f"--tolerance: {name!r} is no metric; {hint}give METRIC=1% or METRIC=8MiB")
    share = amount.removesuffix("%").strip()
    if amount.endswith("%") and _is_number(share):
        return name, Tolerance(relative=float(share) / 100)
    try:
        absolute = parse_bytes(amount)
    except ValueError:
        absolute = None
    if absolute is None or not name.partition(".")[0].endswith("_bytes"):
        raise QbenchError(
            f"--tolerance {name}: given {amount!r}; allowed: a share as 1%, or for bytes a size as 8MiB"
        )
    return name, Tolerance(absolute=absolute)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()


def _append_summary(found: Check, code: int, file: Path) -> None:
    from qbench.report.gate import summary_markdown

    try:
        with file.open("a", encoding="utf-8") as stream:
            stream.write(summary_markdown(found, code))
    except OSError as error:
        raise QbenchError(f"--summary: {file} cannot be written ({error.strerror}); name another") from error


def _print_check(found: Check, code: int) -> None:
    from qbench.report.gate import finding_lines, verdict_lines

    lines = finding_lines(found)
    for line in (*lines, *([""] if lines else []), *verdict_lines(found, code)):
        print_text(line)
