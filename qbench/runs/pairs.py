"""Two Pythons that measure the same points in turn, so that a drift of the machine cancels.

One engine, `measure_pairs`, and two verbs: `compare` runs a fixed number of rounds, `gate` runs until each
point is decided.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qbench.comparison.check import Check, Finding
from qbench.comparison.environments import PointChange, compare_environments, package_changes
from qbench.comparison.methods import Difference
from qbench.comparison.sequential import StoppingRule, check_pairs, looks
from qbench.comparison.verdicts import MIN_EFFECT, Tolerance
from qbench.errors import QbenchError
from qbench.measure.interpreter import CodeFolder, Interpreter, inspect, measure_in, plan_in
from qbench.measure.task import Task
from qbench.measure.worktree import checked_out, find_commit
from qbench.records.record import Record, run_id_of
from qbench.records.store import open_store
from qbench.runs.plans import with_inputs
from qbench.scenario.schema import Device, Point, Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of two Pythons."""

    name: str
    """Of its run folder, and the ending of its run id."""
    interpreter: Interpreter


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """The two Pythons that are compared; `second` is compared with `first`."""

    first: Side
    second: Side

    def __iter__(self) -> Iterator[Side]:
        yield self.first
        yield self.second

    @property
    def packages(self) -> list[Difference]:
        """The packages that differ, by their versions or by what of one is not as its version has it."""
        return package_changes(*(side.interpreter.installed for side in self))

    @property
    def same_code(self) -> bool:
        """Whether both have the same source of qbench, so that only libraries can make a difference."""
        return self.first.interpreter.code_id == self.second.interpreter.code_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """When to stop, decided or not."""

    pairs: int
    """Processes of each side for each point."""
    seconds: float | None = None
    """For all points together; None: as long as it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One measurement of a pair."""

    side: Side
    point: Point
    repeat: int
    number: int
    """Among all measurements, from 1."""
    open_points: int
    """Points that are still measured in this round."""


PairWatcher = Callable[[Turn, Record | None], None]
"""Called before each measurement without a record, and after it with its record."""
Order = Callable[[int], bool]
"""Whether the second side begins the pair of this number."""
SideRecords = tuple[list[Record], list[Record]]
"""Records of the first side and of the second."""
StillOpen = Callable[[Sequence[Point], int, SideRecords], Sequence[Point]]
"""Which of some points need more, after so many pairs of each."""
MeasureSide = Callable[[Interpreter, Task, str], Record]


def in_turn(repeat: int) -> bool:
    """Begin with the first side and the second by turns: A B B A A B B A."""
    return repeat % 2 == 1


def by_lot(seed: str) -> Order:
    """Return an order of A B B A or B A A B, at random, in case the machine's speed varies periodically."""

    def order(repeat: int) -> bool:
        second_begins = random.Random(f"{seed} {repeat // 2}").random() < 0.5
        return second_begins == (repeat % 2 == 0)

    return order


def every_point(points: Sequence[Point], pairs: int, measured: SideRecords) -> Sequence[Point]:
    """Need more of all points, whatever was measured."""
    return points


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """What is measured in pairs, and where the records go."""

    scenario: Scenario
    points: Sequence[Point]
    sides: Sides
    device: Device
    folder: Path
    """Has a run folder for each side."""
    watch: PairWatcher
    measure: MeasureSide = measure_in


def measure_pairs(
    asked: Pairing,
    budget: Budget,
    run_id: str,
    order: Order = in_turn,
    still_open: StillOpen = every_point,
) -> SideRecords:
    """Measure each point on both sides; return the records of this call.

    Rounds are the outer loop, so that a drift of the machine falls on all points alike. After the first pair
    none begins that would end beyond the budget, were it as long as the point's last one. Raises RecordError
    when a folder cannot be written; what a point does never raises.
    """
    clock, points = _Clock(budget.seconds), asked.points
    measured: SideRecords = ([], [])
    with contextlib.ExitStack() as stack:
        stores = [stack.enter_context(open_store(asked.folder / side.name)) for side in asked.sides]
        both = list(zip(asked.sides, stores, measured, strict=True))
        for repeat in range(budget.pairs):
            for point in points:
                if not clock.begins(point):
                    return measured
                for side, store, records in both[::-1] if order(repeat) else both:
                    number = sum(map(len, measured)) + 1
                    turn = Turn(side=side, point=point, repeat=repeat, number=number, open_points=len(points))
                    asked.watch(turn, None)
                    records.append(_measured(asked, turn, f"{run_id}-{side.name}"))
                    store.append(records[-1])
                    asked.watch(turn, records[-1])
                clock.ended(point)
            points = still_open(points, repeat + 1, measured)
            if not points:
                break
    return measured


class _Clock:
    """Says whether there is time for one more pair of a point, by what its pairs have taken."""

    def __init__(self, seconds: float | None) -> None:
        self._begun = time.monotonic()
        self._deadline = None if seconds is None else self._begun + seconds
        self._taken: dict[Point, float] = {}

    def begins(self, point: Point) -> bool:
        """Begin a pair where there is time for it; say whether."""
        self._begun = time.monotonic()
        if self._deadline is None or not self._taken:
            return True
        # Of a point that was never measured the others tell.
        expected = self._taken.get(point, max(self._taken.values()))
        return self._begun + expected <= self._deadline

    def ended(self, point: Point) -> None:
        """Note what a pair of a point took."""
        self._taken[point] = time.monotonic() - self._begun


def _measured(asked: Pairing, turn: Turn, run_id: str) -> Record:
    settings = asked.scenario.measure
    task = Task(point=turn.point, device=asked.device, settings=settings, repeat=turn.repeat)
    return with_inputs(asked.measure(turn.side.interpreter, task, run_id))


def environments(a: str, b: str) -> Sides:
    """Return two interpreters as sides a and b. Raises QbenchError where one cannot run qbench."""
    return Sides(first=Side(name="a", interpreter=inspect(a)), second=Side(name="b", interpreter=inspect(b)))


def compare(asked: Pairing) -> list[PointChange]:
    """Measure each point on both sides as often as the scenario says; return what differs.

    Only the records of this call are compared, since those of an earlier one were not interleaved with them.
    Raises as `measure_pairs` does.
    """
    budget, run_id = Budget(pairs=asked.scenario.measure.repeats), run_id_of(f"{asked.scenario.name}-ab")
    return compare_environments(*measure_pairs(asked, budget, run_id))


def compare_plans(
    name: str, scenario_file: Path, sides: Sides, device: Device, folder: Path | None
) -> list[PointChange]:
    """Plan a scenario on both sides, into a folder of FOLDER each if one is given; return what differs.

    Raises MeasureError when a side makes no plan at all, RecordError when a folder cannot be written.
    """
    run_id = run_id_of(f"{name}-ab")
    planned: list[list[Record]] = []
    for side in sides:
        made = plan_in(side.interpreter.path, scenario_file, device)
        planned.append([replace(record, run_id=f"{run_id}-{side.name}") for record in made])
        if folder is not None:
            with open_store(folder / side.name) as store:
                for record in planned[-1]:
                    store.append(record)
    return compare_environments(*planned)


@contextlib.contextmanager
def baseline_and_run(reference: str, folder: Path) -> Iterator[Sides]:
    """Give the two sides of a gate: what `reference` names, and this Python with the files as they are.

    A git ref of the repository around `folder` is checked out beside it until the end. Both sides then take
    the packages of the repository, on its top or in src, before those that are installed. Raises QbenchError
    when the reference is neither a Python nor a commit, or cannot run qbench.
    """
    commit = None if _is_program(reference) else find_commit(reference, folder)
    if commit is not None:
        with checked_out(commit) as code:
            baseline = inspect(sys.executable, CodeFolder(code))
            yield _gate_sides(baseline, inspect(sys.executable, CodeFolder(commit.repository)))
    elif shutil.which(reference):
        yield _gate_sides(inspect(reference), inspect(sys.executable))
    else:
        raise QbenchError(
            f"--baseline: {reference} is neither a commit of a git repository here nor a Python; "
            "give a branch, a tag, HEAD~1, or a path such as .venv-old/bin/python"
        )


def _gate_sides(baseline: Interpreter, run: Interpreter) -> Sides:
    return Sides(first=Side(name="baseline", interpreter=baseline), second=Side(name="run", interpreter=run))


def _is_program(reference: str) -> bool:
    return os.sep in reference and os.access(reference, os.X_OK) and Path(reference).is_file()


def gate(
    asked: Pairing,
    budget: Budget,
    *,
    tolerances: dict[str, Tolerance] | None = None,
    min_effect: float = MIN_EFFECT,
) -> Check:
    """Measure each point on both sides until its speed is decided or the budget gone; return what differs.

    A point one of whose processes did not end ok gets no more. Only the records of this call count. Raises as
    `measure_pairs` does.
    """
    rule = StoppingRule(most=budget.pairs, min_effect=min_effect)
    run_id = run_id_of(f"{asked.scenario.name}-gate")

    def undecided(points: Sequence[Point], pairs: int, measured: SideRecords) -> Sequence[Point]:
        left = [point for point in points if _completed(point, measured)]
        return _ambiguous(left, measured, rule) if pairs in looks(budget.pairs) else left

    measured = measure_pairs(asked, budget, run_id, by_lot(run_id), undecided)
    found = check_pairs(*measured, rule, ended=True, tolerances=tolerances)
    known = {record.point for record in measured[0]}
    # For which there was no time.
    left = [
        Finding(point, "measurement", asked.device, "point", "ambiguous", reason="few pairs")
        for point in asked.points
        if point not in known
    ]
    return replace(found, findings=(*found.findings, *left))


def _completed(point: Point, measured: SideRecords) -> bool:
    return all(record.outcome == "ok" for side in measured for record in side if record.point == point)


def _ambiguous(points: Sequence[Point], measured: SideRecords, rule: StoppingRule) -> list[Point]:
    """Return the points whose speed is not decided at this look."""
    ambiguous = {
        finding.point
        for finding in check_pairs(*measured, rule).findings
        if finding.metric == "step_time_s" and finding.verdict == "ambiguous"
    }
    return [point for point in points if point in ambiguous]
