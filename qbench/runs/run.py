"""A scenario from start to finish: points -> plan beside measurement -> records in a run folder."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from qbench.catalog.gpus import find_gpu
from qbench.measure import nvml
from qbench.measure.environment import environment
from qbench.measure.runner import Engine, Executor, record_of, results
from qbench.measure.task import Task
from qbench.measure.worker import run_task
from qbench.records.calibration import label
from qbench.records.facts import OF_THE_MACHINE, Facts, facts, facts_of, file_facts, input_digests
from qbench.records.parts import Detail, Environment, FitValues, StepCounts
from qbench.records.plan_cache import PlanCache
from qbench.records.record import Kind, Outcome, Record, run_id_of
from qbench.records.software import software
from qbench.records.store import RECORDS_FILE, RunStore, each_record, open_store
from qbench.runs.plans import PlanFor, each_plan, with_inputs
from qbench.scenario.schema import Device, Point, RunDevice, Scenario

FINISHED = ("ok", "oom")
"""Outcomes that a second run does not try again."""

EachPlan = Callable[[Sequence[Point], PlanFor], Generator[tuple[int, Record]]]
"""Yields the index and the plan of each point as it is there, as `plans.each_plan` does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One thing to do for a point: plan it, or measure it in one more process."""

    point: Point
    repeat: int | None
    """Number of the process; None for the plan."""
    gpu: str | None = None
    """Card of the catalog that is planned for and that a null GPU is; None on any other device."""

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
    running: int = 0
    """Jobs that have begun and not ended; more than one where the executor has several machines."""
    timed: Counter[Kind] = field(default_factory=Counter)
    """Jobs of this run that have ended, by kind."""
    seconds: dict[Kind, float] = field(default_factory=lambda: {"plan": 0.0, "measurement": 0.0})
    """How long those took together."""

    @property
    def done(self) -> int:
        """Jobs whose result is in the folder now."""
        return self.kept + self.outcomes.total()

    @property
    def remaining_s(self) -> float | None:
        """Seconds that the rest takes at the present pace; None before each kind of job left was seen."""
        kinds = [kind for kind, count in self.left.items() if count]
        if not all(self.timed[kind] for kind in kinds):
            return None
        alone_s = sum(self.left[kind] * self.seconds[kind] / self.timed[kind] for kind in kinds)
        return alone_s / max(1, self.running)

    def begin(self) -> None:
        """Count a job that begins."""
        self.running += 1

    def end(self, kind: Kind, outcome: Outcome, seconds: float) -> None:
        """Count a job that has ended and taken so many seconds."""
        self.running -= 1
        self.left[kind] -= 1
        self.timed[kind] += 1
        self.seconds[kind] += seconds
        self.outcomes[outcome] += 1


Watcher = Callable[[Progress, Job, Record | None], None]
"""Called twice for each job: before it, without a record, and after it, with its record."""


def run_scenario(
    scenario: Scenario,
    points: tuple[Point, ...],
    folder: Path,
    device: RunDevice,
    executor: Executor,
    watch: Watcher,
    *,
    cards: tuple[str, ...] = (),
    engine: Engine = run_task,
    planner: EachPlan | None = None,
    any_machine: bool = False,
    kinds: Collection[Kind] = ("plan", "measurement"),
) -> Progress:
    """Plan and measure each point into a run folder, and return what was done.

    On the device null each point is planned and measured for each of `cards`, names in the catalog.
    A job that `reasons` calls finished is not done again; of the others, those of `kinds` are done. Repeats
    are the outer loop, so that a drift of the machine falls on all points alike. Raises RecordError when the
    folder cannot be written, MeasureError when no worker can run at all; what one point does never raises.
    """
    run_id = run_id_of(scenario.name)
    maker = _Maker(scenario, device, executor, run_id, engine, planner or plan_points)
    with open_store(folder) as store:
        found = reasons(scenario, points, folder, device, cards=cards, any_machine=any_machine)
        todo = [(job, reason) for job, reason in found if job.kind in kinds]
        fresh = [job for job, reason in todo if reason is not None]
        left: Counter[Kind] = Counter(job.kind for job in fresh)
        progress = Progress(total=len(todo), kept=len(todo) - len(fresh), left=left, notice=store.notice)
        run = _Run(progress, store, watch)
        start = time.monotonic()
        with closing(maker.planned([job for job in fresh if job.kind == "plan"])) as made:
            for job, record in made:
                run.begin(job)
                run.end(job, start, record)
                start = time.monotonic()
        with closing(maker.measured(run.begun(job for job in fresh if job.kind == "measurement"))) as ended:
            for job, start, record in ended:
                run.end(job, start, record)
    return progress


def _jobs(points: tuple[Point, ...], repeats: int, cards: tuple[str, ...]) -> Iterator[Job]:
    if cards:
        # One process each: on a null GPU the bytes are the same every time.
        yield from (
            Job(point=point, repeat=repeat, gpu=find_gpu(card).name)
            for repeat in (None, 0)
            for card in cards
            for point in points
        )
        return
    yield from (Job(point=point, repeat=None) for point in points)
    for repeat in range(repeats):
        yield from (Job(point=point, repeat=repeat) for point in points)


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes the record of a job."""

    scenario: Scenario
    device: RunDevice
    executor: Executor
    run_id: str
    engine: Engine
    planner: EachPlan

    def planned(self, jobs: Sequence[Job]) -> Generator[tuple[Job, Record]]:
        """Yield each job with its plan, as `plans.each_plan` makes them."""
        for card in dict.fromkeys(job.gpu for job in jobs):
            of_card = [job for job in jobs if job.gpu == card]
            settings = plan_settings(_kernels(self.device), (card,) if card else self.scenario.plan.gpus)
            with closing(self.planner([job.point for job in of_card], settings)) as made:
                for index, record in made:
                    detail: Detail = {**record.detail, **_of_settings(settings)}
                    named: Environment = {**record.environment, "card": card} if card else record.environment
                    done = replace(record, run_id=self.run_id, detail=detail, environment=named)
                    yield of_card[index], done

    def task(self, job: Job) -> Task:
        return Task(
            point=job.point,
            device=self.device,
            settings=self.scenario.measure,
            repeat=job.repeat or 0,
            gpu=job.gpu,
        )

    def measured(self, begun: Iterator[tuple[Job, float]]) -> Generator[tuple[Job, float, Record]]:
        """Yield each job that has begun when it has ended, in whatever order, with its record."""
        works = (((job, start), partial(self.engine, self.task(job))) for job, start in begun)
        done = results(self.executor, works, self.scenario.measure.timeout_s, self.device)
        with closing(done):
            for (job, start), measurement in done:
                yield job, start, with_inputs(record_of(self.task(job), measurement, self.run_id))


@dataclass(frozen=True, slots=True)
class _Run:
    """Tells and stores what begins and ends."""

    progress: Progress
    store: RunStore
    watch: Watcher

    def begun(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, float]]:
        """Yield each job, with the time, once its beginning was announced."""
        for job in jobs:
            self.begin(job)
            yield job, time.monotonic()

    def begin(self, job: Job) -> None:
        self.progress.begin()
        self.watch(self.progress, job, None)

    def end(self, job: Job, start: float, record: Record) -> None:
        self.store.append(record)
        self.progress.end(job.kind, record.outcome, time.monotonic() - start)
        self.watch(self.progress, job, record)


def _kernels(device: RunDevice) -> Device:
    """Return whose kernels a device runs."""
    return "cpu" if device == "cpu" else "cuda"


def plan_settings(device: Device, gpus: Sequence[str]) -> PlanFor:
    """Return what points are planned for beside measurements of this process, with GPUs by their names.

    CUDA's allocator is planned with the settings of this process's environment, which are the worker's, too.
    """
    from qbench.measure.known_speed import usable_calibrations

    return PlanFor(
        device=device,
        gpus=tuple(map(find_gpu, gpus)),
        alloc_conf=alloc_conf() if device == "cuda" else "",
        calibrations=usable_calibrations(device),
    )


def _of_settings(settings: PlanFor) -> Detail:
    """Return what a stored plan says of the settings that it was made with."""
    return {"alloc_conf": settings.alloc_conf, "calibrations": [*map(label, settings.calibrations)]}


def plan_points(points: Sequence[Point], settings: PlanFor) -> Generator[tuple[int, Record]]:
    """Yield plans as `each_plan` does, from the user's cache where they are there.

    The libraries start CUDA when they are imported, which would take memory of the card that is measured; so
    beside a GPU the plans are made where it is out of sight.
    """
    return each_plan(points, settings, PlanCache(), apart=nvml.cuda_present())


def alloc_conf() -> str:
    """Return the settings of CUDA's allocator in this process (c10/cuda/CUDAAllocatorConfig.h, instance)."""
    return os.environ.get("PYTORCH_CUDA_ALLOC_CONF", os.environ.get("PYTORCH_ALLOC_CONF", ""))


def reasons(
    scenario: Scenario,
    points: tuple[Point, ...],
    folder: Path,
    device: RunDevice,
    *,
    cards: tuple[str, ...] = (),
    any_machine: bool = False,
) -> list[tuple[Job, str | None]]:
    """Return each job of a scenario with why it must run; None where its result is in the folder already.

    A result counts when it was made of the same files by the same code and libraries, and a measurement
    also with the same settings and as many steps, on the same machine; with `any_machine` on whichever,
    since a cluster gives now one and now another. Raises RecordError when the folder cannot be read.
    """
    jobs = list(_jobs(points, scenario.measure.repeats, cards))
    answers: list[str | None] = ["new"] * len(jobs)
    places: dict[tuple[str, Kind, int | None, str | None], list[int]] = {}
    for place, job in enumerate(jobs):
        places.setdefault((job.point.point_id, job.kind, job.repeat, job.gpu), []).append(place)
    present = {gpu: _present(scenario, device, gpu) for gpu in {job.gpu for job in jobs}}
    devices = {"plan": _kernels(device), "measurement": device}
    files = {point: file_facts(input_digests(point)) for point in points}
    ignored = OF_THE_MACHINE if any_machine else frozenset[str]()
    for record in each_record(folder) if (folder / RECORDS_FILE).exists() else ():
        repeat = record.repeat if record.kind == "measurement" else None
        candidates = places.get((record.point_id, record.kind, repeat, record.card), ())
        # Of points that name two files of one name, a record is of that whose content it has, if of any.
        own = [place for place in candidates if files[jobs[place].point] == facts_of(record).files]
        for place in own or candidates:
            # Once any record counts, no other matters; of those that do not, the latest says why.
            if record.device == devices[record.kind] and answers[place] is not None:
                job = jobs[place]
                wanted = replace(present[job.gpu][record.kind], files=files[job.point])
                answers[place] = _objection(record, wanted, ignored)
    return list(zip(jobs, answers, strict=True))


def _objection(record: Record, wanted: Facts, ignored: frozenset[str]) -> str | None:
    if record.outcome not in FINISHED:
        return f"ended in {record.outcome}: {record.error_line}"
    then, today = facts_of(record).standing, wanted.standing
    for name in {**today, **then}:
        before, now = then.get(name), today.get(name)
        if before != now and name not in ignored:
            # Digests say nothing to a person.
            is_digest = name == "code" or name.startswith("source of ")
            return f"the {name} changed" if is_digest else f"{name} changed: {before} -> {now}"
    return None


def _present(scenario: Scenario, device: RunDevice, gpu: str | None) -> dict[Kind, Facts]:
    """Return the facts that a plan and a measurement made now would carry."""
    settings = scenario.measure
    protocol: StepCounts = {"warmup_steps": settings.warmup_steps, "steps": settings.steps}
    gpus = () if device == "cpu" else (gpu,) if gpu else scenario.plan.gpus
    planned = plan_settings(_kernels(device), gpus)
    fits: list[FitValues] = [{"gpu": card.name, "fits": False} for card in planned.gpus]
    return {
        "plan": facts("plan", software(), {"fits": fits, **_of_settings(planned)}),
        "measurement": facts("measurement", environment(device, gpu), {"protocol": protocol}),
    }
