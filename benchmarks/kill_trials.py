"""Kill a run or its worker at a random moment and continue: no record may be lost, torn or doubled.

    python -m benchmarks.kill_trials 100

runs so many trials and says what they found. One trial takes about two seconds.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from qbench.measure.executors.local import LocalExecutor
from qbench.measure.task import Measurement, Task
from qbench.records.record import Record
from qbench.records.store import read_records
from qbench.runs.plans import PlanFor, plan_record
from qbench.runs.run import FINISHED, run_scenario
from qbench.scenario.expand import expand
from qbench.scenario.schema import Point, Scenario

SCENARIO = Scenario(
    name="trial",
    question="Does every record survive?",
    base={"model": "HuggingFaceTB/SmolLM2-135M"},
    matrix={"r": [1, 2, 4, 8, 16, 32]},
    measure={"repeats": 2, "timeout_s": 30},  # type: ignore[arg-type]
)
KILL_S = (0.3, 0.8)
"""When to kill. An undisturbed run imports for 0.3 s and ends after a second or so."""

PID_FILE = "QBENCH_TRIAL_PID"

Key = tuple[str, str, int | None]


def planner(points: Sequence[Point], settings: PlanFor) -> Generator[tuple[int, Record]]:
    """Yield plans that take no time."""
    for index, point in enumerate(points):
        yield index, plan_record(point, settings, Measurement(outcome="ok", metrics=_metrics(point)))


def engine(task: Task) -> Measurement:
    """Return a measurement that takes 20 ms, and leave the worker's id for whoever wants to kill it."""
    Path(os.environ[PID_FILE]).write_text(str(os.getpid()))
    time.sleep(0.02)
    return Measurement(outcome="ok", metrics=_metrics(task.point))


def _metrics(point: Point) -> dict[str, Any]:
    assert point.lora is not None
    # Long enough that a line does not fit into one page of memory.
    return {"total_params": point.lora.r, "step_time_s": [0.5] * 2000}


def run(folder: Path) -> None:
    """Run the scenario into a folder, as `qbench run` does."""
    run_scenario(
        SCENARIO,
        expand(SCENARIO),
        folder,
        "cpu",
        LocalExecutor(preload=("benchmarks.kill_trials",)),
        lambda progress, job, record: None,
        engine=engine,
        planner=planner,
    )


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start a run in a process of its own, without a main module that its workers would import again."""
    env = {**os.environ, PID_FILE: str(folder.with_suffix(".pid")), "PYTHONPATH": os.pathsep.join(sys.path)}
    code = "import sys, pathlib, benchmarks.kill_trials as k; k.run(pathlib.Path(sys.argv[1]))"
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], env=env)


def finished(folder: Path) -> dict[Key, dict[str, Any]]:
    """Return the metrics of each finished job. Raises ValueError when the same code finished one twice."""
    found: dict[Key, dict[str, Any]] = {}
    seen = set()
    for record in read_records(folder):
        key = (record.point_id, record.kind, record.repeat)
        if record.outcome not in FINISHED:
            continue
        if (key, record.environment["code_id"]) in seen:
            raise ValueError(f"{folder}: {key} is finished twice")
        seen.add((key, record.environment["code_id"]))
        found[key] = record.metrics
    return found


def trial(folder: Path, chance: random.Random) -> str:
    """Kill a run at a random moment and continue it until it is done; return what was killed."""
    victim = chance.choice(("runner", "worker"))
    with start(folder) as runner:
        time.sleep(chance.uniform(*KILL_S))
        victim = _kill(victim, runner, folder.with_suffix(".pid"))
    with start(folder) as runner:
        if runner.wait() != 0:
            raise ValueError(f"{folder}: the continued run ended with {runner.returncode}")
    return victim


def undisturbed(folder: Path) -> dict[Key, dict[str, Any]]:
    """Return the metrics of each job of a run that nothing happens to."""
    with start(folder) as runner:
        runner.wait()
    return finished(folder)


def _kill(victim: str, runner: subprocess.Popen[bytes], pid_file: Path) -> str:
    if runner.poll() is not None:
        return "nothing, it was done"
    if victim == "runner":
        runner.kill()
        return victim
    while runner.poll() is None:
        # A worker lives for a moment only, and between two of them there is none.
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(pid_file.read_text()), signal.SIGKILL)
            return victim
    return "nothing, it was done"


def main(trials: int) -> None:
    """Run trials and print how they went."""
    seed = random.randrange(1 << 32)
    chance, victims = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        expected = undisturbed(Path(name) / "undisturbed")
        for number in range(trials):
            folder = Path(name) / str(number)
            victims[trial(folder, chance)] += 1
            if finished(folder) != expected:
                raise ValueError(f"{folder} (seed {seed}): not the records of an undisturbed run")
    killed = ", ".join(f"{victim}: {count}" for victim, count in victims.most_common())
    print(f"{trials} trials, each with all {len(expected)} records once and whole; killed: {killed}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
