"""The progress of a run on stderr, with the time left."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from qbench.cli.console import print_note
from qbench.units import format_seconds, printable

if TYPE_CHECKING:
    from qbench.measure.task import Measurement
    from qbench.records.record import Record
    from qbench.runs.run import Job, Progress, Watcher
    from qbench.runs.sizing import OnSearch


@contextlib.contextmanager
def shown_progress(title: str) -> Iterator[Watcher]:
    """Yield the watcher of a run: a moving bar on a terminal, else a line for each job.

    The title is printed once the first job begins, so after everything that could have refused the run.
    """
    with _bar() if sys.stderr.isatty() else contextlib.nullcontext(_print_line) as show:
        titles = [title]

        def watch(progress: Progress, job: Job, record: Record | None) -> None:
            if titles:
                print_note(titles.pop())
            show(progress, job, record)

        yield watch


@contextlib.contextmanager
def shown_plans(total: int) -> Iterator[Callable[[int, Record], None]]:
    """Yield what to call with each finished plan: a progress bar on a terminal, if there are several."""
    if total == 1 or not sys.stderr.isatty():
        yield lambda index, record: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    with Bar(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda index, record: bar.advance(task)


@contextlib.contextmanager
def shown_steps() -> Iterator[OnSearch]:
    """Yield what to call before each part of a search: a line with a clock on a terminal."""
    if not sys.stderr.isatty():
        yield lambda number, total, name: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("planning", total=None)
        yield lambda number, total, name: bar.update(
            task, description=printable(f"planning {number} of {total}: {name}")
        )


def job_text(job: Job) -> str:
    """Return what a job does: 'plan ...', 'measure #1 ...'."""
    what = "plan" if job.repeat is None else f"measure #{job.repeat + 1}"
    on = f" for {job.gpu}" if job.repeat is None else f" on a null GPU ({job.gpu})"
    return printable(f"{what} {job.point.label}{on if job.gpu else ''}")


def _print_line(progress: Progress, job: Job, record: Record | None) -> None:
    if record is None:
        print_note(f"[{progress.done + progress.running}/{progress.total}] {job_text(job)}{_left(progress)}")
    elif record.outcome != "ok":
        print_note(f"    {ending(record)}")


def _left(progress: Progress) -> str:
    seconds = progress.remaining_s
    return "" if seconds is None else f" ({format_seconds(round(seconds))} left)"


def ending(record: Record | Measurement) -> str:
    """Return how a record ended and why, on one line."""
    return printable(f"{record.outcome}: {record.error_line}") if record.error else record.outcome


@contextlib.contextmanager
def _bar() -> Iterator[Watcher]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True, highlight=False)
    text = TextColumn("{task.description}", markup=False)
    left = TextColumn("{task.fields[left]}", markup=False)
    with Bar(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), left, text, console=console) as bar:
        task = bar.add_task("", total=None, left="")

        def show(progress: Progress, job: Job, record: Record | None) -> None:
            bar.update(
                task,
                total=progress.total,
                completed=progress.done,
                description=job_text(job),
                left=_left(progress),
            )
            if record is not None and record.outcome != "ok":
                bar.console.print(f"{job_text(job)}: {ending(record)}", markup=False)

        yield show
