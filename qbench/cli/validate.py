"""`qbench validate`: plan published measurements again and report how far off the plans are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from qbench.cli import options
from qbench.cli.console import print_json, print_note, print_table, print_text


def validate_command(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Run folders with measurements on a GPU, to compare as well.")
    ] = None,
    null: Annotated[
        bool,
        typer.Option("--null", help="Run the grid of points on null GPUs instead, and compare its plans."),
    ] = False,
    every: Annotated[int, typer.Option(min=1, help="With --null: run every Nth point of the grid.")] = 1,
    random: Annotated[
        int, typer.Option(min=0, help="With --null: run this many random points outside the grid instead.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="With --null: seed of the random points.")] = 0,
    python: Annotated[
        str | None, typer.Option(help="With --null: Python with a CUDA build of torch.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the report; default reports/accuracy, with --null reports/nullgpu."),
    ] = None,
    as_json: options.AsJson = False,
) -> int:
    """Compare plans with published measurements, and with your own on a GPU."""
    if null:
        from qbench.cli.null_grid import NullRows, validate_null

        rows = NullRows(every=every, random=random, seed=seed)
        return validate_null(out or Path("reports/nullgpu"), python, rows, as_json)
    from qbench.records.store import read_records

    stored = {str(run): read_records(run) for run in runs or []}

    # Only now the heavy libraries: a run that is not there is told at once.
    from qbench.catalog.predictions import other_predictions
    from qbench.catalog.published import not_compared
    from qbench.records.software import library_versions
    from qbench.report.accuracy import comparison_table, summary_table, write_accuracy
    from qbench.runs.validation import compare_measured, compare_published

    compared = compare_published(_show)
    for source, records in stored.items():
        compared += compare_measured(records, source, _show)
    versions = {name: version for name, version in library_versions().items() if version}
    planned_with = ", ".join(f"{name} {version}" for name, version in versions.items())
    paths = write_accuracy(
        compared, not_compared(), planned_with, out or Path("reports/accuracy"), other_predictions()
    )
    if as_json:
        print_json(_document(compared, versions))
        return 0
    print_table(comparison_table(compared))
    print_table(summary_table(compared))
    print_text(f"planned with {planned_with}")
    print_text(f"report: {paths[0]}")
    return 0


def _show(index: int, total: int, run: str) -> None:
    print_note(f"[{index + 1}/{total}] plan {run}")


def _document(compared: list[Any], versions: dict[str, str]) -> dict[str, Any]:
    from dataclasses import asdict

    from qbench.catalog.published import not_compared
    from qbench.comparison.accuracy import summarize

    return {
        "planned_with": versions,
        "summary": [asdict(found) for found in summarize(compared)],
        "comparisons": [found.to_dict() for found in compared],
        "not_compared": [asdict(part) for part in not_compared()],
    }
