"""Turn a task and what an executor made of it into a record."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from qbench.measure.environment import environment
from qbench.measure.task import Attempt, Measurement, Task
from qbench.measure.worker import run_task
from qbench.records.parts import Detail, StepCounts
from qbench.records.record import Record
from qbench.scenario.schema import RunDevice

Key = TypeVar("Key")

Engine = Callable[[Task], Measurement]
"""Measures a task in the process that it is called in; a module's function, since it travels by name."""


class Executor(Protocol):
    """Whoever runs work in a fresh process: this machine, or a cluster."""

    def run(self, work: Attempt, timeout_s: float, device: RunDevice) -> Measurement:
        """Return the measurement of one piece of work; never raises for what the work does.

        For `device` cpu the process sees no GPU.
        """


@runtime_checkable
class Streaming(Protocol):
    """An executor that does several pieces of work at the same time."""

    def stream(
        self, works: Iterable[tuple[Key, Attempt]], timeout_s: float, device: RunDevice
    ) -> Iterator[tuple[Key, Measurement]]:
        """Yield the key and the measurement of each piece of work as it ends.

        Work is taken from `works` when there is room for it. Closing the iterator ends what still runs.
        """


def results(
    executor: Executor, works: Iterable[tuple[Key, Attempt]], timeout_s: float, device: RunDevice
) -> Generator[tuple[Key, Measurement]]:
    """Yield key and measurement of each piece of work, as many at a time as the executor can do."""
    if isinstance(executor, Streaming):
        yield from executor.stream(works, timeout_s, device)
        return
    for key, work in works:
        yield key, executor.run(work, timeout_s, device)


def measure(task: Task, executor: Executor, run_id: str, engine: Engine = run_task) -> Record:
    """Return the record of one task, done by an executor."""
    return record_of(task, executor.run(partial(engine, task), task.settings.timeout_s, task.device), run_id)


def record_of(task: Task, done: Measurement, run_id: str) -> Record:
    """Return the record of a task and what became of it.

    A worker that died says nothing of its machine; this process does then.
    """
    settings = task.settings
    protocol: StepCounts = {"warmup_steps": settings.warmup_steps, "steps": settings.steps}
    return Record(
        run_id=run_id,
        point=task.point,
        kind="measurement",
        outcome=done.outcome,
        metrics=done.metrics,
        detail={"repeat": task.repeat, "protocol": protocol, **_without_home(done.detail)},
        environment=done.environment or environment(task.device, task.gpu),
    )


def _without_home(detail: Detail) -> Detail:
    """Return what a library printed or raised without the user's name, which paths below the home hold."""
    home = os.path.expanduser("~")
    if len(home) < 2:
        return detail
    hidden: dict[str, Any] = {
        key: value.replace(home, "~") if isinstance(value, str) else value for key, value in detail.items()
    }
    return cast("Detail", hidden)
