"""A scenario from start to finish: points -> plan beside measurement -> records in a run folder."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from qbench.catalog.gpus import find_gpu
from qbench.errors import QbenchError
from qbench.measure import nvml
from qbench.measure.environment import environment, inputs
from qbench.measure.failures import attempt
from qbench.measure.runner import Engine, Executor, measure
from qbench.measure.task import Measurement, Task
from qbench.measure.worker import run_task
from qbench.records.record import Kind, Record
from qbench.records.software import software
from qbench.records.store import RECORDS_FILE, open_store, read_records
from qbench.scenario.schema import Device, Point, Scenario

FINISHED = ("ok", "oom")
"""Outcomes that a second run does not try again."""

Planner = Callable[[Point, Device, tuple[str, ...]], Measurement]
"""Plans a point for a device and names of GPUs; a module's function, since it may travel to a worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One thing to do for a point: plan it, or measure it in one more process."""

    point: Point
    repeat: int | None
    """Number of the process; None for the plan."""

    @property
    def kind(self) -> Kind:
        """The kind of record that the job makes."""
        return "plan" if self.repeat is None else "measurement"


@dataclass(slots=True, kw_only=True)
class Progress:
    """What a run has done so far, and how long the rest will take."""

    total: int
    kept: int
    """Jobs whose result was in the folder already."""
    left: Counter[Kind]
    """Jobs still to be done, by kind."""
    notice: str | None = None
    """What was repaired in the folder before the run, None when nothing was."""
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: dict[Kind, list[float]] = field(default_factory=lambda: {"plan": [], "measurement": []})
    """How long each job of this run took."""

    @property
    def done(self) -> int:
        """Jobs whose result is in the folder now."""
        return self.kept + self.outcomes.total()

    @property
    def remaining_s(self) -> float | None:
        """Seconds that the rest takes at the present pace; None before each kind of job left was seen."""
        kinds = [kind for kind, count in self.left.items() if count]
        if not all(self.seconds[kind] for kind in kinds):
            return None
        return sum(self.left[kind] * statistics.mean(self.seconds[kind]) for kind in kinds)


Watcher = Callable[[Progress, Job, Record | None], None]
"""Is told of each job twice: before it, without a record, and after it, with its record."""


def run_scenario(
    scenario: Scenario,
    points: tuple[Point, ...],
    folder: Path,
    device: Device,
    executor: Executor,
    watch: Watcher,
    *,
    engine: Engine = run_task,
    planner: Planner | None = None,
) -> Progress:
    """Plan and measure each point into a run folder, and return what was done.

    A job that `reasons` calls finished is not done again. Repeats are the outer loop, so that a drift of
    the machine falls on all points alike. Raises RecordError when the folder cannot be written, MeasureError
    when no worker can run at all; what one point does never raises.
    """
    run_id = f"{scenario.name}-{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}"
    maker = _Maker(scenario, device, executor, run_id, engine, planner or plan_point)
    with open_store(folder) as store:
        todo = reasons(scenario, points, folder, device)
        fresh = [job for job, reason in todo if reason is not None]
        left: Counter[Kind] = Counter(job.kind for job in fresh)
        kept = len(todo) - len(fresh)
        progress = Progress(total=len(todo), kept=kept, left=left, notice=store.notice)
        for job in fresh:
            watch(progress, job, None)
            start = time.monotonic()
            record = maker.record(job)
            store.append(record)
            progress.seconds[job.kind].append(time.monotonic() - start)
            progress.left[job.kind] -= 1
            progress.outcomes[record.outcome] += 1
            watch(progress, job, record)
    return progress


def _jobs(points: tuple[Point, ...], repeats: int) -> Iterator[Job]:
    yield from (Job(point=point, repeat=None) for point in points)
    for repeat in range(repeats):
        yield from (Job(point=point, repeat=repeat) for point in points)


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes the record of a job."""

    scenario: Scenario
    device: Device
    executor: Executor
    run_id: str
    engine: Engine
    planner: Planner

    def record(self, job: Job) -> Record:
        record = self._planned(job.point) if job.repeat is None else self._measured(job.point, job.repeat)
        files = inputs(job.point)
        return replace(record, environment={**record.environment, "inputs": files}) if files else record

    def _measured(self, point: Point, repeat: int) -> Record:
        task = Task(point=point, device=self.device, settings=self.scenario.measure, repeat=repeat)
        return measure(task, self.executor, self.run_id, self.engine)

    def _planned(self, point: Point) -> Record:
        work = partial(self.planner, point, self.device, self.scenario.plan.gpus)
        if nvml.cuda_present():
            # The libraries start CUDA when they are imported, which would take memory of the card that is
            # measured; so the plan is made where the card is out of sight.
            done = self.executor.run(work, self.scenario.measure.timeout_s, "cpu")
        else:
            done = attempt(work)
        return Record(
            run_id=self.run_id,
            point=point,
            kind="plan",
            outcome=done.outcome,
            metrics=done.metrics,
            detail=done.detail,
            environment=done.environment or {"device": self.device, **software()},
        )


def plan_point(point: Point, device: Device, gpus: tuple[str, ...]) -> Measurement:
    """Return the plan of a point, held against the named GPUs. Raises QbenchError where none can be made."""
    from qbench.plan.planner import plan

    record = plan(point, device, [find_gpu(name) for name in gpus])
    return Measurement(
        outcome=record.outcome, metrics=record.metrics, detail=record.detail, environment=record.environment
    )


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


Facts = dict[str, Any]


def reasons(
    scenario: Scenario, points: tuple[Point, ...], folder: Path, device: Device
) -> list[tuple[Job, str | None]]:
    """Return each job of a scenario with why it must run; None where its result is in the folder already.

    A result counts when it was made of the same files by the same code and libraries, and a measurement
    also on the same machine with as many steps. Raises RecordError when the folder cannot be read.
    """
    stored: dict[tuple[str, Kind, int | None, str | None], list[Record]] = {}
    for record in read_records(folder) if (folder / RECORDS_FILE).exists() else []:
        repeat = record.detail.get("repeat") if record.kind == "measurement" else None
        stored.setdefault((record.point_id, record.kind, repeat, record.device), []).append(record)
    present = _present(scenario, device)
    files = {point: inputs(point) for point in points}
    return [
        (
            job,
            _reason(
                stored.get((job.point.point_id, job.kind, job.repeat, device), ()),
                {**present[job.kind], **_file_facts(files[job.point])},
            ),
        )
        for job in _jobs(points, scenario.measure.repeats)
    ]


def _reason(records: Sequence[Record], wanted: Facts) -> str | None:
    """Return why the latest record does not count, None when any of them does."""
    found = [_objection(record, wanted) for record in records]
    if None in found:
        return None
    return found[-1] if found else "new"


def _objection(record: Record, wanted: Facts) -> str | None:
    if record.outcome not in FINISHED:
        first_line = str(record.detail.get("error", "")).partition("\n")[0]
        return f"ended in {record.outcome}: {first_line}"
    facts = _facts(record.kind, record.environment, record.detail)
    for name in {**wanted, **facts}:
        before, now = facts.get(name), wanted.get(name)
        if before != now:
            return "the code changed" if name == "code" else f"{name} changed: {before} -> {now}"
    return None


def _present(scenario: Scenario, device: Device) -> dict[Kind, Facts]:
    """Return the facts that a plan and a measurement made now would carry."""
    settings = scenario.measure
    protocol = {"warmup_steps": settings.warmup_steps, "steps": settings.steps}
    fits = [{"gpu": find_gpu(name).name} for name in scenario.plan.gpus] if device == "cuda" else []
    return {
        "plan": _facts("plan", software(), {"fits": fits}),
        "measurement": _facts("measurement", environment(device), {"protocol": protocol}),
    }


def _facts(kind: Kind, env: Mapping[str, Any], detail: Mapping[str, Any]) -> Facts:
    """Return what decides whether a result still stands, each under the name that a person knows."""
    versions = {f"version of {name}": version for name, version in (env.get("versions") or {}).items()}
    facts: Facts = {"code": env.get("code_id"), **versions, **_file_facts(env.get("inputs") or {})}
    if kind == "plan":
        return {**facts, "GPUs": [fit["gpu"] for fit in detail.get("fits") or []]}
    machine = {"machine": env.get("device_name"), "driver": env.get("driver")}
    if env.get("device") == "cpu":
        machine = {"machine": env.get("device_name"), "number of CPUs": env.get("cpu_count")}
    return {**facts, **machine, **(env.get("settings") or {}), **(detail.get("protocol") or {})}


def _file_facts(files: Mapping[str, str]) -> Facts:
    return {f"content of {name}": digest for name, digest in files.items()}
