"""`qbench report`: render run folders as HTML, Markdown, CSV and Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qbench.cli import options
from qbench.cli.ci_outputs import append_summary, summary_room
from qbench.cli.console import print_error, print_json, print_note, print_sentence, print_table, print_text

if TYPE_CHECKING:
    from qbench.records.store import StoredRecords
    from qbench.report.content import Content

NAMED_LINES = 3
"""Number of damaged lines of one file that are reported one by one."""


def report_command(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or records.jsonl files.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write into; default RUN/report.")] = None,
    title: Annotated[str, typer.Option(help="Title of the report.")] = "",
    static: Annotated[bool, typer.Option("--static", help="Also draw each chart as SVG and PNG.")] = False,
    pr: Annotated[
        Path | None, typer.Option(help="Write Markdown for a pull request's comment to this file.")
    ] = None,
    summary: Annotated[
        Path | None, typer.Option(help="Append the same to this file, for example GitHub's step summary.")
    ] = None,
    as_json: options.AsJson = False,
) -> int:
    """Report on runs: HTML, Markdown, CSV, and Parquet where pyarrow is installed.

    A line that is not a record is reported and skipped.
    """
    from qbench.records.store import collector_paused

    with collector_paused():
        stored = [_read(run) for run in runs]
        records = [record for run in stored for record in run.records]
        places = [place for run in stored for place in run.places]

        # Only now the heavy libraries: a run that is not there is told at once.
        from qbench.report.content import gather_content
        from qbench.report.export import can_write_parquet, summary_document, write_report

        folder = out or (runs[0] if runs[0].is_dir() else runs[0].parent) / "report"
        content = gather_content(records, places)
        name = title or ", ".join(dict.fromkeys(run.resolve().name for run in runs))
        paths = write_report(records, folder, name, content, places)
        if static:
            _draw(content, folder / "charts")
        _write_comments(content, name, pr, summary)
        if as_json:
            files = {suffix: str(path) for suffix, path in paths.items()}
            print_json({"files": files, **summary_document(content)})
            return 0
        _print_summary(content, paths["html"])
        if not can_write_parquet():
            print_note("no report.parquet, which needs pyarrow: pip install 'qbench[parquet]'")
        return 0


def _read(run: Path) -> StoredRecords:
    """Return what a run holds; raises RecordError when none of its lines is a record."""
    from qbench.errors import RecordError
    from qbench.records.store import read_stored

    stored = read_stored(run)
    if stored.damaged and not stored.records:
        raise RecordError(stored.damaged[0])
    if stored.torn is not None:
        place, num_bytes = stored.torn
        print_error(f"{place}: skipped the last line, which is incomplete ({num_bytes} bytes)")
    for text in stored.damaged[:NAMED_LINES]:
        print_error(f"left out: {text}")
    if len(stored.damaged) > NAMED_LINES:
        print_error(f"left out: {len(stored.damaged) - NAMED_LINES} more lines of {run}that are not records")
    return stored


def _draw(content: Content, folder: Path) -> None:
    from qbench.report.charts.all import charts
    from qbench.report.charts.static import write_static

    paths = write_static(charts(content.results), folder)
    print_note(f"charts: {len(paths)} files in {folder}")


def _write_comments(content: Content, title: str, comment: Path | None, summary: Path | None) -> None:
    from qbench.report.markdown import comment_text

    if comment is not None:
        _write_comment(comment, comment_text(content, title))
    if summary is not None:
        append_summary(summary, comment_text(content, title, summary_room(summary)))


def _write_comment(file: Path, text: str) -> None:
    from qbench.errors import QbenchError

    try:
        file.write_text(text, encoding="utf-8", errors="replace", newline="\n")
    except OSError as error:
        raise QbenchError(f"--pr: {file} cannot be written ({error.strerror}); name another") from error


def _print_summary(content: Content, page: Path) -> None:
    from qbench.report.terminal.run import run_lines

    if content.results:
        print_text("\n".join((*run_lines(content.results, content.pairs), "")))
    for sentence in (*content.sentences, *content.quality, *content.warnings):
        print_sentence(sentence)
    if content.failures is not None:
        print_table(content.failures)
    print_text(f"\nreport: {page}")
