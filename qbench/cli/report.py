"""`qbench report`: render run folders as HTML, Markdown and CSV."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qbench.cli.console import print_error, print_json, print_table, print_text

if TYPE_CHECKING:
    from qbench.records.record import Record
    from qbench.report.content import Content

NAMED_LINES = 3
"""Damaged lines of one file that are told one by one."""


def report_command(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or records.jsonl files.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write into; default RUN/report.")] = None,
    title: Annotated[str, typer.Option(help="Title of the report.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Report on runs: HTML, Markdown and CSV.

    A line of a file that is no record is told and left out.
    """
    records = [record for run in runs for record in _read(run)]

    # Only now the heavy libraries: a run that is not there is told at once.
    from qbench.report.content import gather_content
    from qbench.report.export import summary_document, write_report

    folder = out or (runs[0] if runs[0].is_dir() else runs[0].parent) / "report"
    content = gather_content(records)
    name = title or ", ".join(dict.fromkeys(run.resolve().name for run in runs))
    paths = write_report(records, folder, name, content)
    if as_json:
        files = {suffix: str(path) for suffix, path in paths.items()}
        print_json({"files": files, **summary_document(content)})
    else:
        _print_summary(content, paths["html"])
    return 0


def _read(run: Path) -> list[Record]:
    """Return the records of a run; raises RecordError when none of its lines is one."""
    from qbench.errors import RecordError
    from qbench.records.store import read_stored

    stored = read_stored(run)
    if stored.damaged and not stored.records:
        raise RecordError(stored.damaged[0])
    if stored.notice:
        print_error(stored.notice)
    for text in stored.damaged[:NAMED_LINES]:
        print_error(f"left out: {text}")
    if len(stored.damaged) > NAMED_LINES:
        print_error(f"left out: {len(stored.damaged) - NAMED_LINES} more lines of {run} that are no records")
    return stored.records


def _print_summary(content: Content, page: Path) -> None:
    from qbench.report.run_summary import run_lines

    for line in (*run_lines(content.results), "", *content.headline, *content.warnings):
        print_text(line)
    if content.failures is not None:
        print_table(content.failures)
    print_text(f"\nreport: {page}")
