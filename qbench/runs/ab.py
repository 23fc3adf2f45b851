"""The same points in two Python environments, interleaved A B B A, so that a drift of the machine cancels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from qbench.comparison.environments import PackageChange, PointChange, compare_environments, package_changes
from qbench.errors import MeasureError, RecordError
from qbench.measure.interpreter import Interpreter, inspect, measure_in, run_qbench
from qbench.measure.task import Task
from qbench.records.record import Record, record_from_dict, run_id_of
from qbench.records.store import RunStore, open_store
from qbench.scenario.schema import Device, Point, Scenario

Side = Literal["a", "b"]
SIDES: tuple[Side, Side] = ("a", "b")

PLAN_TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Environments:
    """The two interpreters that are held against each other."""

    a: Interpreter
    b: Interpreter

    def __getitem__(self, side: Side) -> Interpreter:
        return self.a if side == "a" else self.b

    @property
    def packages(self) -> list[PackageChange]:
        """The packages whose versions differ."""
        return package_changes(self.a.packages, self.b.packages)

    @property
    def same_code(self) -> bool:
        """Whether both have the same source of qbench, so that only libraries can make a difference."""
        return self.a.code_id == self.b.code_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One measurement of an A/B run."""

    side: Side
    point: Point
    repeat: int


Watcher = Callable[[int, int, Turn, Record | None], None]
"""Is told (number, total, turn) before each measurement, and again with its record after it."""


def inspect_both(a: str, b: str) -> Environments:
    """Return the facts of two interpreters. Raises QbenchError where one cannot run qbench."""
    return Environments(a=inspect(a), b=inspect(b))


def turns(points: tuple[Point, ...], repeats: int) -> Iterator[Turn]:
    """Yield the measurements in order: each point A B in one round, B A in the next.

    Rounds are the outer loop, so that a drift of the machine falls on all points alike.
    """
    for repeat in range(repeats):
        for point in points:
            for side in SIDES if repeat % 2 == 0 else SIDES[::-1]:
                yield Turn(side=side, point=point, repeat=repeat)


def measure_both(
    scenario: Scenario,
    points: tuple[Point, ...],
    environments: Environments,
    device: Device,
    folder: Path,
    watch: Watcher,
) -> list[PointChange]:
    """Measure each point in both environments into FOLDER/a and FOLDER/b; return what differs.

    Only the records of this call are compared, since those of an earlier one were not interleaved with
    them. Raises RecordError when a folder cannot be written; what one point does never raises.
    """
    run_id = run_id_of(f"{scenario.name}-ab")
    made: dict[Side, list[Record]] = {"a": [], "b": []}
    order = list(turns(points, scenario.measure.repeats))
    with open_store(folder / "a") as store_a, open_store(folder / "b") as store_b:
        stores: dict[Side, RunStore] = {"a": store_a, "b": store_b}
        for number, turn in enumerate(order, start=1):
            watch(number, len(order), turn, None)
            task = Task(point=turn.point, device=device, settings=scenario.measure, repeat=turn.repeat)
            record = measure_in(environments[turn.side], task, f"{run_id}-{turn.side}")
            stores[turn.side].append(record)
            made[turn.side].append(record)
            watch(number, len(order), turn, record)
    return compare_environments(made["a"], made["b"])


def plan_both(
    name: str, scenario_file: Path, environments: Environments, device: Device, folder: Path | None
) -> list[PointChange]:
    """Plan a scenario in both environments, into FOLDER/a and FOLDER/b if one is given; return what differs.

    Raises MeasureError when an environment makes no plan at all, RecordError when a folder cannot be
    written.
    """
    run_id = run_id_of(f"{name}-ab")
    made: dict[Side, list[Record]] = {}
    for side in SIDES:
        planned = _planned(environments[side], scenario_file, device)
        made[side] = [replace(record, run_id=f"{run_id}-{side}") for record in planned]
        if folder is not None:
            with open_store(folder / side) as store:
                for record in made[side]:
                    store.append(record)
    return compare_environments(made["a"], made["b"])


def _planned(interpreter: Interpreter, scenario_file: Path, device: Device) -> list[Record]:
    arguments = ["plan", str(scenario_file.resolve()), "--device", device, "--json"]
    ended = run_qbench(interpreter.path, arguments, PLAN_TIMEOUT_S, gpu=False)
    try:
        values = json.loads(ended.stdout)["records"]
        return [record_from_dict(record, f"plan of {interpreter.path}") for record in values]
    except (ValueError, KeyError, TypeError, RecordError) as error:
        why = ended.last_line if ended.exit_code != 0 else str(error)
        raise MeasureError(f"{interpreter.path} made no plan: {why}") from error
