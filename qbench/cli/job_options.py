"""`plan --tokens`: the hours and the money of a whole training on each card."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qbench.cli.console import print_table, print_text
from qbench.errors import QbenchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qbench.planner.job import Job, JobTime
    from qbench.records.record import Record
    from qbench.scenario.schema import Point

Tokens = Annotated[
    str, typer.Option(help="Also show the hours and the cost of training on so many tokens, for example 10M.")
]
Epochs = Annotated[float, typer.Option(help="With --tokens: number of passes over the dataset.")]
EvalTokens = Annotated[str, typer.Option(help="With --tokens: tokens of one evaluation.")]
EvalSteps = Annotated[
    int, typer.Option(min=0, help="With --tokens: optimizer steps between evaluations, 0 for none.")
]
SaveSteps = Annotated[
    int, typer.Option(min=0, help="With --tokens: optimizer steps between checkpoints, 0 for none.")
]

NOTE = (
    "Evaluation runs forward only; a checkpoint writes what is trained with Adam's states at 1 GB/s (0.2 to "
    "3 in the range). Warm-up, compiling and waiting for data are left out."
)


def job_of(tokens: str, epochs: float, eval_tokens: str, eval_steps: int, save_steps: int) -> Job | None:
    """Return the job that the options describe, None without --tokens. Raises QbenchError."""
    from qbench.planner.job import Job
    from qbench.planner.workload import parse_tokens

    if not tokens:
        if epochs != 1 or eval_tokens or eval_steps or save_steps:
            raise QbenchError("--epochs, --eval-tokens, --eval-steps and --save-steps need --tokens")
        return None
    if bool(eval_tokens) != bool(eval_steps):
        raise QbenchError("--eval-tokens and --eval-steps go together; give both or none")
    if not 0 < epochs < math.inf:
        raise QbenchError(f"--epochs: given {epochs:g}; allowed: a number above 0")
    return Job(
        tokens=round(parse_tokens(tokens) * epochs),
        eval_tokens=parse_tokens(eval_tokens) if eval_tokens else 0,
        eval_steps=eval_steps,
        save_steps=save_steps,
    )


def _times(records: Sequence[Record], job: Job) -> Iterator[tuple[Point, JobTime]]:
    from qbench.planner.job import job_time

    for record in records:
        trainable = record.metrics["trainable_params"] if record.outcome == "ok" else None
        if not isinstance(trainable, int):
            continue
        for fit in record.fits:
            found = job_time(job, record.point, fit, trainable) if fit.fits else None
            if found is not None:
                yield record.point, found


def job_documents(records: Sequence[Record], job: Job) -> list[dict[str, Any]]:
    """Return the hours and the cost for each point and card that holds it, as JSON values."""
    return [{"point_id": point.point_id, **asdict(found)} for point, found in _times(records, job)]


def print_jobs(records: Sequence[Record], job: Job) -> None:
    """Print the hours and the cost for each point and card that holds it."""
    from qbench.report.table import Column, Table

    rows = [
        (
            point.label,
            found.gpu,
            found.hours,
            *found.range_hours,
            found.eval_hours,
            found.save_hours,
            found.cost_usd,
        )
        for point, found in _times(records, job)
    ]
    print_text("")
    if not rows:
        print_text("No hours: no card was named that holds the step and has known rates.")
        return
    hours = [Column(title, "h") for title in ("Hours", "From", "To", "Evaluation", "Checkpoints")]
    columns = (Column("Point"), Column("GPU"), *hours, Column("Cost", "USD"))
    table = Table(columns=columns, rows=tuple(rows), notes=(NOTE,))
    print_table(table, f"Training on {job.tokens:,} tokens")
