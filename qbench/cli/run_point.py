"""`qbench run-point`: measure the one point of a file into another, for whoever carries points elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from qbench.cli.console import print_text


def run_point_command(
    point: Annotated[Path, typer.Argument(help="Request for one measurement, written by `run --points`.")],
    result: Annotated[Path, typer.Argument(help="File for the record; it is written whole or not at all.")],
) -> int:
    """Measure one point in a fresh process and write its record to a file.

    For Slurm, SkyPilot, Kubernetes and other queues. The record holds the outcome of the point; the exit code
    is 0 for ok and oom, 3 for any other outcome, and 2 if the point was not measured.
    """
    from qbench.cli.progress import ending
    from qbench.errors import RecordError
    from qbench.measure.executors.local import LocalExecutor
    from qbench.measure.request import read_request
    from qbench.measure.runner import measure
    from qbench.measure.settings import take_settings
    from qbench.records.files import write_whole
    from qbench.records.lines import encoded
    from qbench.runs.plans import with_inputs
    from qbench.runs.run import FINISHED

    request = read_request(point)
    if not os.access(result.parent, os.W_OK):
        raise RecordError(
            f"{result}: there is no folder {result.parent} that can be written; create it first"
        )
    if request.settings is not None:
        take_settings(request.settings)
    record = with_inputs(measure(request.task, LocalExecutor(), request.run_id))
    try:
        write_whole(result, encoded(record))
    except RecordError:
        print_text(encoded(record).decode().rstrip())  # A job's output is kept, too.
        raise
    print_text(f"{result}: {ending(record)}")
    return 0 if record.outcome in FINISHED else 3
