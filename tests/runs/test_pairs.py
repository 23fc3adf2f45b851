"""Pairs whose processes are made up: which are measured, in what order, when it ends, what is stored."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from qbench.comparison.check import Check
from qbench.comparison.verdicts import Failed
from qbench.errors import QbenchError
from qbench.measure.interpreter import Interpreter
from qbench.measure.task import Task
from qbench.records.record import Record
from qbench.records.store import read_records
from qbench.runs.pairs import Budget, Pairing, Side, Sides, Turn, baseline_and_run, compare
from qbench.runs.pairs import gate as run_gate
from qbench.scenario.schema import MeasureSettings, Point, Scenario
from qbench.words.verdicts import reason_text

SCENARIO = Scenario(name="s", question="Slower?", base={"model": "x"})
FAST, NOISY = Point(model="fast"), Point(model="noisy")
BOTH = Sides(
    first=Side(name="baseline", interpreter=Interpreter(path="before", python="3", code_id="0", packages={})),
    second=Side(name="run", interpreter=Interpreter(path="now", python="3", code_id="1", packages={})),
)


Watcher = Callable[[Turn, Record | None], None]


@dataclass
class Machine:
    """Makes processes up: a step takes a second, and on the run's side `slower` times that."""

    slower: float = 1.0
    noise: dict[str, float] = field(default_factory=lambda: {"fast": 0.002, "noisy": 0.2})
    outcome: Callable[[str, Task], Any] = lambda side, task: "ok"
    made: list[tuple[str, str, int]] = field(default_factory=list)
    source: random.Random = field(default_factory=lambda: random.Random(1))

    def measure(self, interpreter: Interpreter, task: Task, run_id: str) -> Record:
        side = interpreter.path
        self.made.append((side, task.point.model, task.repeat))
        seconds = (self.slower if side == "now" else 1.0) + self.source.gauss(0, self.noise[task.point.model])
        return Record(
            run_id=run_id,
            point=task.point,
            kind="measurement",
            outcome=self.outcome(side, task),
            metrics={"step_time_s": [seconds], "peak_allocated_bytes": 1 << 30},
            detail={"repeat": task.repeat, "error": "no such command"},
            environment={"device": "cpu", "device_name": "made up"},
        )


def watch(turn: Turn, record: Record | None) -> None:
    """Serve where nobody listens."""


def gate(
    machine: Machine, folder: Path, *points: Point, pairs: int = 8, seconds: float | None = None
) -> Check:
    return run_gate(pairing(machine, folder, *points), Budget(pairs=pairs, seconds=seconds))


def pairing(
    machine: Machine, folder: Path, *points: Point, repeats: int = 3, watch: Watcher = watch
) -> Pairing:
    scenario = SCENARIO.model_copy(update={"measure": MeasureSettings(repeats=repeats)})
    return Pairing(
        scenario=scenario,
        points=points,
        sides=BOTH,
        device="cpu",
        folder=folder,
        watch=watch,
        measure=machine.measure,
    )


def test_a_comparison_runs_a_b_b_a_with_points_inside_a_round(tmp_path: Path) -> None:
    machine, told = Machine(), []

    def listen(turn: Turn, record: Record | None) -> None:
        told.append((turn.number, turn.side.name, record is None))

    changes = compare(pairing(machine, tmp_path, FAST, NOISY, repeats=2, watch=listen))
    assert machine.made == [
        ("before", "fast", 0),
        ("now", "fast", 0),
        ("before", "noisy", 0),
        ("now", "noisy", 0),
        ("now", "fast", 1),
        ("before", "fast", 1),
        ("now", "noisy", 1),
        ("before", "noisy", 1),
    ]
    assert told[:4] == [(1, "baseline", True), (1, "baseline", False), (2, "run", True), (2, "run", False)]
    assert [number for number, _, begins in told if begins] == list(range(1, 9))
    assert [(change.point, len(change.a), len(change.b)) for change in changes] == [
        (FAST, 2, 2),
        (NOISY, 2, 2),
    ]
    assert len(read_records(tmp_path / "run")) == 4


def test_a_comparison_goes_on_where_a_process_fails(tmp_path: Path) -> None:
    machine = Machine(outcome=lambda side, task: "crashed" if side == "now" else "ok")
    compare(pairing(machine, tmp_path, FAST, repeats=2))
    assert len(machine.made) == 4


def test_sides_alternate_and_a_decided_point_gets_no_more_processes(tmp_path: Path) -> None:
    machine = Machine(slower=1.1)
    found = gate(machine, tmp_path, FAST, NOISY)
    fast = "".join(side[0] for side, model, _ in machine.made if model == "fast")
    assert len(fast) == 2 * 4
    assert {fast[:4], fast[4:]} <= {"bnnb", "nbbn"}
    assert sum(model == "noisy" for _, model, _ in machine.made) == 2 * 8
    speed = {each.point: each for each in found.findings if each.metric == "step_time_s"}
    assert speed[FAST].verdict == "worse"
    assert "over 4 pairs" in reason_text(speed[FAST].reason)
    assert speed[NOISY].verdict == "ambiguous"
    assert "over 8 pairs" in reason_text(speed[NOISY].reason)
    assert found.exit_code() == 1


@pytest.mark.parametrize(
    ("slower", "verdict", "code"), [(1.0, "same", 0), (1.08, "worse", 1), (0.9, "better", 0)]
)
def test_verdicts_and_exit_codes(tmp_path: Path, slower: float, verdict: str, code: int) -> None:
    found = gate(Machine(slower=slower), tmp_path, FAST)
    assert {each.verdict for each in found.findings if each.metric == "step_time_s"} == {verdict}
    assert found.exit_code() == code


def test_both_sides_are_kept_and_only_this_gate_counts(tmp_path: Path) -> None:
    gate(Machine(slower=1.5), tmp_path, FAST)
    found = gate(Machine(slower=1.0), tmp_path, FAST)
    assert found.exit_code() == 0
    for side in ("baseline", "run"):
        records = read_records(tmp_path / side)
        assert len(records) == 8
        assert all(record.run_id.endswith(f"-{side}") for record in records)


def test_a_point_that_runs_out_of_memory_is_worse_and_ends(tmp_path: Path) -> None:
    machine = Machine(outcome=lambda side, task: "oom" if side == "now" else "ok")
    found = gate(machine, tmp_path, FAST)
    assert sorted(machine.made) == [("before", "fast", 0), ("now", "fast", 0)]
    (finding,) = found.findings
    assert (finding.metric, finding.verdict, found.exit_code()) == ("outcome", "worse", 1)


def test_a_baseline_that_does_not_run_is_not_comparable(tmp_path: Path) -> None:
    machine = Machine(outcome=lambda side, task: "crashed" if side == "before" else "ok")
    found = gate(machine, tmp_path, FAST)
    (finding,) = found.findings
    assert (finding.verdict, finding.reason, found.exit_code()) == (
        "not comparable",
        Failed("baseline", "no such command"),
        2,
    )


def test_a_run_that_crashes_is_worse(tmp_path: Path) -> None:
    found = gate(Machine(outcome=lambda side, task: "crashed" if side == "now" else "ok"), tmp_path, FAST)
    (finding,) = found.findings
    assert (finding.verdict, finding.reason) == ("worse", Failed("run", "no such command"))
    assert found.exit_code() == 1


def test_when_the_time_is_over_what_is_there_is_judged(tmp_path: Path) -> None:
    machine = Machine()
    found = gate(machine, tmp_path, NOISY, pairs=100, seconds=1e-9)
    assert len(machine.made) == 2  # The first pair has no other to say how long one takes.
    speed = next(each for each in found.findings if each.metric == "step_time_s")
    assert (speed.verdict, speed.reason) == ("ambiguous", "few pairs")


def test_a_point_for_which_there_was_no_time_is_undecided(tmp_path: Path) -> None:
    found = gate(Machine(), tmp_path, FAST, NOISY, pairs=100, seconds=1e-9)
    left = [(each.point, each.verdict) for each in found.findings if each.metric == "point"]
    assert left == [(NOISY, "ambiguous")]
    assert found.is_undecided
    assert (found.exit_code(), found.exit_code(strict=True)) == (0, 1)


def test_the_budget_is_kept_with_the_pair_that_still_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three points of 30 s a pair: 120 s are four pairs, not one round too many or too few."""
    now, machine = [0.0], Machine()

    def measure(interpreter: Interpreter, task: Task, run_id: str) -> Record:
        now[0] += 15
        return machine.measure(interpreter, task, run_id)

    monkeypatch.setattr("qbench.runs.pairs.time.monotonic", lambda: now[0])
    slow = Point(model="noisy", precision="nf4")
    asked = replace(pairing(machine, tmp_path, FAST, NOISY, slow), measure=measure)
    run_gate(asked, Budget(pairs=100, seconds=120))
    assert (len(machine.made), now[0]) == (8, 120)


def test_what_is_neither_a_commit_nor_a_python_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(QbenchError, match="no-such-thing is neither a commit"),
        baseline_and_run("no-such-thing", tmp_path),
    ):
        pass


def test_a_python_is_the_baseline_with_what_it_has(tmp_path: Path) -> None:
    with baseline_and_run(sys.executable, tmp_path) as both:
        assert [side.name for side in both] == ["baseline", "run"]
        assert both.first.interpreter.path == sys.executable
        assert both.same_code
        assert both.first.interpreter.code is None
