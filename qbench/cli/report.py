"""`qbench report`: render run folders as HTML, Markdown and CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qbench.cli.console import print_note, print_table, print_text


def report_command(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or records.jsonl files.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write into; default RUN/report.")] = None,
    title: Annotated[str, typer.Option(help="Title of the report.")] = "",
) -> int:
    """Report on runs: HTML, Markdown and CSV."""
    from qbench.records.store import read_stored
    from qbench.report.content import gather_content
    from qbench.report.export import write_report
    from qbench.report.run_summary import run_lines

    stored = [read_stored(run) for run in runs]
    for notice in (read.notice for read in stored if read.notice):
        print_note(f"qbench: {notice}")
    records = [record for read in stored for record in read.records]
    folder = out or (runs[0] if runs[0].is_dir() else runs[0].parent) / "report"
    content = gather_content(records)
    name = title or ", ".join(dict.fromkeys(run.resolve().name for run in runs))
    paths = write_report(records, folder, name, content)
    for line in (*run_lines(content.results), "", *content.headline, *content.warnings):
        print_text(line)
    if content.failures is not None:
        print_table(content.failures)
    print_text(f"\nreport: {paths['html']}")
    return 0
