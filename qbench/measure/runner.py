"""Turn a task and its measurement into a record."""

from __future__ import annotations

from typing import Protocol

from qbench.measure.environment import environment
from qbench.measure.task import Measurement, Task
from qbench.records.record import Record


class Executor(Protocol):
    """Whoever runs a task in a fresh process: this machine, or a cluster."""

    def run(self, task: Task) -> Measurement:
        """Return the measurement of one task; never raises for what a point does."""


def measure(task: Task, executor: Executor, run_id: str) -> Record:
    """Return the record of one task. A worker that died says nothing of its machine; the parent does then."""
    done = executor.run(task)
    return Record(
        run_id=run_id,
        point=task.point,
        kind="measurement",
        outcome=done.outcome,
        metrics=done.metrics,
        detail=done.detail,
        environment=done.environment or environment(task.device),
    )
