"""A scenario as it is now against a baseline, both measured side by side until each point is decided."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qbench.comparison.check import Check
from qbench.comparison.sequential import Rule, check_pairs, looks
from qbench.comparison.verdicts import Tolerance
from qbench.errors import QbenchError
from qbench.measure.interpreter import CodeFolder, Interpreter, inspect, measure_in
from qbench.measure.task import Task
from qbench.measure.worktree import checked_out, find_commit
from qbench.records.record import Record, run_id_of
from qbench.records.store import RunStore, open_store
from qbench.runs.run import with_inputs
from qbench.scenario.schema import Device, MeasureSettings, Point, Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Who measures the baseline and who the run."""

    baseline: Interpreter
    run: Interpreter


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """When a gate stops, decided or not."""

    pairs: int
    """Processes of each side for each point."""
    seconds: float | None = None
    """For all points together; None: as long as it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One measurement of a gate."""

    is_baseline: bool
    point: Point
    repeat: int
    undecided: int
    """Points that still need processes."""


Measure = Callable[[Interpreter, Task, str], Record]
Watcher = Callable[[Turn, Record | None], None]
"""Is told of each measurement before it, without a record, and after it, with its record."""


@contextlib.contextmanager
def sides(reference: str, folder: Path) -> Iterator[Sides]:
    """Give the two sides of a gate: what `reference` names, and this Python with the files as they are.

    A git ref of the repository around `folder` is checked out beside it until the end. Both sides then take
    the packages of the repository, on its top or in src, before those that are installed. Raises QbenchError
    when the reference is neither a Python nor a commit, or cannot run qbench.
    """
    commit = None if _is_program(reference) else find_commit(reference, folder)
    if commit is not None:
        with checked_out(commit) as code:
            baseline = inspect(sys.executable, CodeFolder(code))
            yield Sides(baseline=baseline, run=inspect(sys.executable, CodeFolder(commit.repository)))
    elif shutil.which(reference):
        yield Sides(baseline=inspect(reference), run=inspect(sys.executable))
    else:
        raise QbenchError(
            f"--baseline: {reference} is neither a commit of a git repository here nor a Python; "
            "give a branch, a tag, HEAD~1, or a path as .venv-old/bin/python"
        )


def _is_program(reference: str) -> bool:
    return os.sep in reference and os.access(reference, os.X_OK) and Path(reference).is_file()


def run_gate(
    scenario: Scenario,
    points: Sequence[Point],
    sides: Sides,
    device: Device,
    folder: Path,
    budget: Budget,
    watch: Watcher,
    *,
    tolerances: dict[str, Tolerance] | None = None,
    min_effect: float | None = None,
    measure: Measure = measure_in,
) -> Check:
    """Measure each point on both sides in turn, into FOLDER/baseline and FOLDER/run; return what differs.

    A point gets no more processes once its speed is decided, or one of its processes did not end ok. Only
    the records of this call count. Raises RecordError when a folder cannot be written; what a point does
    never raises.
    """
    rule = Rule(most=budget.pairs) if min_effect is None else Rule(most=budget.pairs, min_effect=min_effect)
    with open_store(folder / "baseline") as before, open_store(folder / "run") as now:
        gate = _Gate(
            sides=sides,
            stores=(before, now),
            device=device,
            settings=scenario.measure,
            run_id=run_id_of(f"{scenario.name}-gate"),
            rule=rule,
            watch=watch,
            measure=measure,
        )
        gate.run(points, budget)
    return check_pairs(*gate.records, rule, ended=True, tolerances=tolerances)


@dataclass(slots=True, kw_only=True)
class _Gate:
    sides: Sides
    stores: tuple[RunStore, RunStore]
    device: Device
    settings: MeasureSettings
    run_id: str
    rule: Rule
    watch: Watcher
    measure: Measure
    records: tuple[list[Record], list[Record]] = field(default_factory=lambda: ([], []))
    """Those of the baseline and those of the run."""

    def run(self, points: Sequence[Point], budget: Budget) -> None:
        """Measure until every point is decided or the budget is gone."""
        start, longest, is_open = time.monotonic(), 0.0, list(points)
        for repeat in range(budget.pairs):
            begun = time.monotonic()
            if repeat and budget.seconds is not None and begun + longest > start + budget.seconds:
                break
            for point in is_open:
                self._pair(point, repeat, len(is_open))
            longest = max(longest, time.monotonic() - begun)
            if repeat + 1 in looks(budget.pairs):
                is_open = self._undecided(is_open)
            else:
                is_open = [point for point in is_open if self._completed(point)]
            if not is_open:
                break

    def _pair(self, point: Point, repeat: int, undecided: int) -> None:
        for side in self._order(repeat):
            turn = Turn(is_baseline=side == 0, point=point, repeat=repeat, undecided=undecided)
            self.watch(turn, None)
            interpreter = self.sides.run if side else self.sides.baseline
            task = Task(point=point, device=self.device, settings=self.settings, repeat=repeat)
            name = f"{self.run_id}-{'run' if side else 'baseline'}"
            record = with_inputs(self.measure(interpreter, task, name))
            self.stores[side].append(record)
            self.records[side].append(record)
            self.watch(turn, record)

    def _order(self, repeat: int) -> tuple[int, int]:
        """Return which side goes first: A B B A or B A A B, by lot, lest the machine has a rhythm."""
        begins_with_run = random.Random(f"{self.run_id} {repeat // 2}").random() < 0.5
        return (0, 1) if begins_with_run == (repeat % 2 == 1) else (1, 0)

    def _completed(self, point: Point) -> bool:
        return all(
            record.outcome == "ok" for side in self.records for record in side if record.point == point
        )

    def _undecided(self, points: Sequence[Point]) -> list[Point]:
        findings = check_pairs(*self.records, self.rule).findings
        open_ones = {
            finding.point
            for finding in findings
            if finding.metric == "step_time_s" and finding.verdict == "ambiguous"
        }
        return [point for point in points if point in open_ones and self._completed(point)]
