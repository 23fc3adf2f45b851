"""Turn a task and what an executor made of it into a record."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from qbench.measure.environment import environment
from qbench.measure.task import Measurement, Task, Work
from qbench.measure.worker import run_task
from qbench.records.record import Record
from qbench.scenario.schema import Device

Engine = Callable[[Task], Measurement]
"""Measures a task in the process that it is called in; a module's function, since it travels by name."""


class Executor(Protocol):
    """Whoever runs work in a fresh process: this machine, or a cluster."""

    def run(self, work: Work, timeout_s: float, device: Device) -> Measurement:
        """Return the measurement of one piece of work; never raises for what the work does.

        For `device` cpu the process sees no GPU.
        """


def measure(task: Task, executor: Executor, run_id: str, engine: Engine = run_task) -> Record:
    """Return the record of one task. A worker that died says nothing of its machine; the parent does then."""
    settings = task.settings
    done = executor.run(partial(engine, task), settings.timeout_s, task.device)
    protocol = {"warmup_steps": settings.warmup_steps, "steps": settings.steps}
    return Record(
        run_id=run_id,
        point=task.point,
        kind="measurement",
        outcome=done.outcome,
        metrics=done.metrics,
        detail={"repeat": task.repeat, "protocol": protocol, **done.detail},
        environment=done.environment or environment(task.device),
    )
