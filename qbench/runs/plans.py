"""Plans of many points: from the cache where they are there, else made, on all cores."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from qbench.catalog.gpus import GpuSpec
from qbench.planner.families import family_of
from qbench.quick_imports import quick_imports
from qbench.records.calibration import Calibration
from qbench.records.facts import input_digests, plan_facts
from qbench.records.plan_cache import PlanCache
from qbench.records.record import Record, utc_now
from qbench.records.software import software
from qbench.runs.usual import COMMON_RECIPES
from qbench.scenario.expand import point_from
from qbench.scenario.schema import Device, Point

if TYPE_CHECKING:
    from qbench.measure.task import Measurement
    from qbench.planner.shared import SharedTraces

POINTS_WORTH_PROCESSES = 16
"""Fewer are planned sooner here than the processes have started; measured in benchmarks/plan_speed.py."""

POINTS_PER_TASK = 8
"""How many points of one model a process takes at a time: they share what is known of its operators."""

FAMILY_PER_TASK = 25, 100
"""Least and most points of one family in a task: a family in two tasks is sampled twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFor:
    """What points are planned for: a device's kernels, cards to hold the plan against, the allocator."""

    device: Device = "cuda"
    gpus: tuple[GpuSpec, ...] = ()
    alloc_conf: str = ""
    """CUDA's allocator as PYTORCH_ALLOC_CONF sets it."""
    calibrations: tuple[Calibration, ...] = ()
    """What is known of the speed of devices (`measure.known_speed`)."""


def plans(
    points: Sequence[Point],
    settings: PlanFor,
    cache: PlanCache | None = None,
    on_plan: Callable[[int, Record], None] | None = None,
) -> list[Record]:
    """Return the plan of each point, in order; one that cannot be made has outcome error and says why.

    `on_plan` hears of each as it is there, with its index. `cache` None neither reads nor fills one.
    """
    done: dict[int, Record] = {}
    for index, record in each_plan(points, settings, cache):
        done[index] = record
        if on_plan is not None:
            on_plan(index, record)
    return [done[index] for index in range(len(points))]


def other_recipes(record: Record, settings: PlanFor, cache: PlanCache) -> dict[str, float]:
    """Return the peak of each common recipe over that of a plan, by recipe, as far as they can run."""
    points = [point_from(record.point.model_dump(), changes) for changes in COMMON_RECIPES]
    peaks = {made.point.train.recipe: made.peak_allocated_bytes for made in plans(points, settings, cache)}
    mine = record.peak_allocated_bytes
    return {recipe: peak / mine for recipe, peak in peaks.items() if peak and mine}


def each_plan(
    points: Sequence[Point], settings: PlanFor, cache: PlanCache | None = None, *, apart: bool = False
) -> Generator[tuple[int, Record]]:
    """Yield the index and the plan of each point as it is there, those from the cache first.

    All plans of qbench are made here: points of one family share their traces, many are planned on all
    cores, and what goes wrong with a point is the outcome of its record. `apart` plans even a few in other
    processes, which see no GPU.
    """
    for index, record in _made(points, settings, cache, apart):
        yield index, with_inputs(record)


def with_inputs(record: Record) -> Record:
    """Return a record that names the content of the files that its point names."""
    files = input_digests(record.point)
    return replace(record, environment={**record.environment, "inputs": files}) if files else record


def _made(
    points: Sequence[Point], settings: PlanFor, cache: PlanCache | None, apart: bool
) -> Iterator[tuple[int, Record]]:
    facts = [_facts(point, settings) if cache is not None else None for point in points]
    missing: list[int] = []
    for index, known in enumerate(facts):
        found = cache.get(known) if cache is not None and known is not None else None
        if found is None:
            missing.append(index)
        else:
            yield index, replace(found, point=points[index], created_at=utc_now())
    for index, record in _planned(points, missing, settings, apart):
        known = facts[index]
        if cache is not None and known is not None and record.outcome == "ok":
            cache.put(known, record)
        yield index, record


def _facts(point: Point, settings: PlanFor) -> dict[str, Any] | None:
    return plan_facts(
        point,
        input_digests(point),
        settings.device,
        settings.gpus,
        settings.alloc_conf,
        settings.calibrations,
    )


def _planned(
    points: Sequence[Point], missing: Sequence[int], settings: PlanFor, apart: bool
) -> Iterator[tuple[int, Record]]:
    """Yield (index, record) of points to be planned, in processes where there are many."""
    if not missing:
        return
    from qbench.measure.pool import num_cores  # A plan from the cache needs none.

    if apart or (len(missing) >= POINTS_WORTH_PROCESSES and num_cores() > 1):
        yield from _planned_apart(points, _tasks(points, missing), settings)
    else:
        batch = [points[index] for index in missing]
        yield from zip(missing, _planned_here(settings, batch), strict=True)


def _planned_apart(
    points: Sequence[Point], tasks: Sequence[list[int]], settings: PlanFor
) -> Iterator[tuple[int, Record]]:
    """Yield (index, record) of the points of each task; a process that dies loses the point that ends it."""
    from qbench.measure.pool import in_processes, num_cores
    from qbench.measure.task import Measurement

    left = dict(enumerate(tasks))
    batches = [tuple(points[index] for index in task) for task in tasks]
    try:
        for number, records in in_processes(
            partial(_plan_task, settings), batches, min(num_cores(), len(tasks))
        ):
            yield from zip(left.pop(number), records, strict=True)
    except BrokenExecutor as error:
        if len(tasks) == len(batches[0]) == 1:
            point = batches[0][0]
            died = Measurement(outcome="crashed", detail={"error": f"the planning process ended: {error}"})
            yield tasks[0][0], plan_record(point, settings, died)
            return
        # All processes have ended; which point was at fault shows when each task, then each point, is alone.
        for task in left.values() if len(tasks) > 1 else [[index] for index in tasks[0]]:
            yield from _planned_apart(points, [task], settings)


def _tasks(points: Sequence[Point], missing: Sequence[int]) -> list[list[int]]:
    """Return the points of each task: of one family where there are many, else of one model and precision."""
    from qbench.measure.pool import num_cores

    least, most = FAMILY_PER_TASK
    large = min(most, max(least, len(missing) // (4 * num_cores())))
    families = _grouped(missing, lambda index: family_of(points[index]))
    tasks = [part for group in families if len(group) >= least for part in _parts(group, large)]
    alone = [index for group in families if len(group) < least for index in group]
    by_model = _grouped(alone, lambda index: f"{points[index].model} {points[index].precision}")
    return tasks + [part for group in by_model for part in _parts(group, POINTS_PER_TASK)]


def _grouped(indices: Sequence[int], key: Callable[[int], str]) -> list[list[int]]:
    groups: dict[str, list[int]] = {}
    for index in indices:
        groups.setdefault(key(index), []).append(index)
    return list(groups.values())


def _parts(group: list[int], size: int) -> list[list[int]]:
    return [group[start : start + size] for start in range(0, len(group), size)]


def _plan_task(settings: PlanFor, batch: tuple[Point, ...]) -> list[Record]:
    return list(_planned_here(settings, batch))


def _planned_here(settings: PlanFor, batch: Sequence[Point]) -> Iterator[Record]:
    """Yield the plan of each point, made in this process, with what points of one family share."""
    if not batch:
        return
    with quick_imports():
        from qbench.planner.shared import SharedTraces

    tracer = SharedTraces(batch)
    for point in batch:
        yield plan_or_error(point, settings, tracer)


def plan_or_error(point: Point, settings: PlanFor, tracer: SharedTraces | None = None) -> Record:
    """Return the plan of a point, or the record of why there is none; `tracer` as for `plan`."""
    # Whoever finds all plans in the cache never waits for the heavy libraries.
    with quick_imports():
        from qbench.measure.failures import failure
        from qbench.memory.allocator.config import AllocatorConfig
        from qbench.planner.plan import plan

    try:
        allocator, unknown = AllocatorConfig.of_environment(settings.alloc_conf)
        record = plan(
            point,
            settings.device,
            settings.gpus,
            allocator=allocator,
            tracer=tracer,
            calibrations=settings.calibrations,
        )
    except Exception as error:  # Of whatever class the libraries raise.
        return plan_record(point, settings, failure(error))
    if not unknown:
        return record
    caveats = [*record.caveats, f"allocator settings not modelled: {', '.join(unknown)}"]
    return replace(record, detail={**record.detail, "caveats": caveats})


def plan_record(point: Point, settings: PlanFor, made: Measurement) -> Record:
    """Return the record of what became of a plan; where there is none, detail.error has the reason."""
    return Record(
        run_id="plan",
        point=point,
        kind="plan",
        outcome=made.outcome,
        metrics=made.metrics,
        detail=made.detail,
        environment={"device": settings.device, **software()},
    )
