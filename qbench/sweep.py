"""A scenario from start to finish: points -> plan beside measurement -> records in a run folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from qbench.catalog.gpus import find_gpu
from qbench.errors import QbenchError
from qbench.measure.environment import machine
from qbench.measure.runner import Executor, measure
from qbench.measure.task import Task
from qbench.plan.planner import plan
from qbench.records.record import Record
from qbench.records.software import software
from qbench.records.store import RunStore, open_store, read_records
from qbench.scenario.schema import Device, Point, Scenario

FINISHED = ("ok", "oom")
"""Outcomes that a second run does not try again."""

Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One thing to do for a point: plan it, or measure it in one more process."""

    point: Point
    repeat: int | None
    """Number of the process; None for the plan."""


@dataclass(slots=True, kw_only=True)
class Progress:
    """What a run has done so far; handed to `on_job` before each job."""

    total: int
    done: int = 0
    kept: int = 0
    """Jobs whose result was in the folder already."""
    outcomes: Counter[str] = field(default_factory=Counter)


OnJob = Callable[[Progress, Job], None]


def run_scenario(
    scenario: Scenario,
    points: tuple[Point, ...],
    folder: Path,
    device: Device,
    executor: Executor,
    on_job: OnJob,
) -> Progress:
    """Plan and measure each point into a run folder, and return what was done.

    A job that is already finished there, with the same code, versions and machine, is not done again.
    Repeats are the outer loop, so that a drift of the machine falls on all points alike. Raises
    RecordError when the folder cannot be written; what one point does never raises.
    """
    run_id = f"{scenario.name}-{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}"
    with open_store(folder) as store:
        known = _finished(folder)
        jobs = list(_jobs(points, scenario.measure.repeats))
        fresh = [job for job in jobs if _key(job, device) not in known]
        progress = Progress(total=len(jobs), done=len(jobs) - len(fresh), kept=len(jobs) - len(fresh))
        for job in fresh:
            on_job(progress, job)
            if job.repeat is None:
                record = _planned(scenario, job.point, device, run_id)
            else:
                task = Task(point=job.point, device=device, settings=scenario.measure, repeat=job.repeat)
                record = measure(task, executor, run_id)
            _keep(store, progress, record)
    return progress


def _jobs(points: tuple[Point, ...], repeats: int) -> Iterator[Job]:
    yield from (Job(point=point, repeat=None) for point in points)
    for repeat in range(repeats):
        yield from (Job(point=point, repeat=repeat) for point in points)


def _keep(store: RunStore, progress: Progress, record: Record) -> None:
    store.append(record)
    progress.done += 1
    progress.outcomes[record.outcome] += 1


def _planned(scenario: Scenario, point: Point, device: Device, run_id: str) -> Record:
    gpus = [find_gpu(name) for name in scenario.plan.gpus]
    try:
        return plan(point, device, gpus, run_id)
    except QbenchError as error:
        return failed_plan(point, device, run_id, error)


def failed_plan(point: Point, device: Device, run_id: str, error: QbenchError) -> Record:
    """Return the record of a plan that could not be made, with the reason in detail.error."""
    return Record(
        run_id=run_id,
        point=point,
        kind="plan",
        outcome="error",
        metrics={},
        detail={"error": str(error)},
        environment={"device": device, **software()},
    )


def _finished(folder: Path) -> set[Key]:
    return {_record_key(record) for record in read_records(folder) if record.outcome in FINISHED}


def _record_key(record: Record) -> Key:
    environment = record.environment
    versions = tuple(sorted((environment.get("versions") or {}).items()))
    name = environment.get("device_name") if record.kind == "measurement" else None
    repeat = record.detail.get("repeat") if record.kind == "measurement" else None
    return (record.point_id, record.kind, repeat, record.device, name, environment.get("code_id"), versions)


def _key(job: Job, device: Device) -> Key:
    present: dict[str, Any] = software()
    versions = tuple(sorted(present["versions"].items()))
    kind = "plan" if job.repeat is None else "measurement"
    name = None if job.repeat is None else machine(device)["device_name"]
    return (job.point.point_id, kind, job.repeat, device, name, present["code_id"], versions)
