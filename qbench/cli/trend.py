"""`qbench trend`: metrics over many runs, and where their level changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qbench.cli import options
from qbench.cli.console import print_json, print_note, print_table, print_text
from qbench.errors import QbenchError, nearest


def trend_command(
    history: Annotated[
        list[Path], typer.Argument(help="Run folders, .jsonl files, or folders that hold some of them.")
    ],
    metric: Annotated[
        list[str] | None, typer.Option(help="Metric to follow; can be repeated. Default: memory and time.")
    ] = None,
    as_json: options.AsJson = False,
) -> int:
    """Show how points changed over runs, and which runs started a new level.

    Always exits with 0, also while there are too few runs: a step shows only after some runs.
    Use `qbench check` as a gate. Needs Apache Otava: pip install 'qbench[trend]'.
    """
    from qbench.comparison.trend import DEFAULT_METRICS, trend
    from qbench.records.document import read_history
    from qbench.report.trend import trend_document, trend_table
    from qbench.words.trend import no_history_text

    metrics = tuple(dict.fromkeys(map(_metric, metric or DEFAULT_METRICS)))
    records = read_history(history)
    series = trend(records, metrics)
    if not series:
        print_note(no_history_text(records, metrics))
    if as_json:
        print_json({"series": trend_document(series)})
    elif series:
        print_table(trend_table(series))
        steps = sum(len(one.changes) for one in series)
        print_text(f"{len(series)} series, {steps} changes of level")
    return 0


def _metric(name: str) -> str:
    from qbench.records.metrics import SCALARS

    if name not in SCALARS:
        close = nearest(name, SCALARS, count=1)
        hint = f"did you mean {close[0]}?" if close else f"allowed: {', '.join(SCALARS)}"
        raise QbenchError(f"--metric: {name!r} is not a metric with one number; {hint}")
    return name
