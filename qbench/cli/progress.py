"""The progress bar of a run, on stderr, with the time left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from qbench.sweep import Job, OnJob, Progress


@contextlib.contextmanager
def progress_bar() -> Iterator[OnJob]:
    """Yield the callback that shows each job: a moving bar on a terminal, else one line a job."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda progress, job: console.print(
            f"[{progress.done + 1}/{progress.total}] {_text(job)}", markup=False
        )
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Bar(*columns, TextColumn("{task.description}", markup=False), console=console) as bar:
        task = bar.add_task("", total=None)

        def show(progress: Progress, job: Job) -> None:
            bar.update(task, total=progress.total, completed=progress.done, description=_text(job))

        yield show


def _text(job: Job) -> str:
    what = "plan" if job.repeat is None else f"measure #{job.repeat + 1}"
    return f"{what} {job.point.label}"
