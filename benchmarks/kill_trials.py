"""Kill a run or its worker at a random moment and continue: no record may be lost, torn or doubled.

    python -m benchmarks.kill_trials 100

runs so many trials and says what they found. One trial takes about two seconds.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
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
from qbench.records.store import HOLDER_FILE, RECORDS_FILE, read_records
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


def start(folder: Path, most_bytes: int | None = None) -> subprocess.Popen[str]:
    """Start a run in a process of its own, without a main module that its workers would import again.

    With `most_bytes` no file of it may grow larger, as on a full disk.
    """
    env = {**os.environ, PID_FILE: str(folder.with_suffix(".pid")), "PYTHONPATH": os.pathsep.join(sys.path)}
    limit = (
        ""
        if most_bytes is None
        else "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({most_bytes}, -1)); "
    )
    code = f"{limit}import sys, pathlib, benchmarks.kill_trials as k; k.run(pathlib.Path(sys.argv[1]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], env=env, stderr=subprocess.PIPE, text=True
    )


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


KILLED = ("runner", "worker", "server")
DISTURBED = ("records removed", "records moved", "folder removed", "folder moved")
DISTURBANCES = (*KILLED, *DISTURBED, "disk full", "read-only", "second writer")
WORDS = ("during the run", "was not written", "cannot be written", "is writing there")
"""Of what a run that cannot keep its records ends with."""


def trial(folder: Path, chance: random.Random, kinds: Sequence[str] = DISTURBANCES) -> str:
    """Disturb a run at a random moment and continue it until it is done; return what was done to it.

    Raises ValueError where it lost a record without a word.
    """
    kind = chance.choice(kinds)
    if kind in KILLED:
        with start(folder) as runner:
            time.sleep(chance.uniform(*KILL_S))
            kind = _kill(kind, runner, folder.with_suffix(".pid"))
    elif kind in DISTURBED:
        kind = _moved_or_removed(folder, kind, chance)
    elif kind == "second writer":
        _beside_another(folder)
    else:
        _refused(folder, kind, chance)
    with start(folder) as runner:
        _, said = runner.communicate()
        if runner.returncode != 0:
            raise ValueError(
                f"{folder}: after {kind} the continued run ended with {runner.returncode}: {said}"
            )
    return kind


def _moved_or_removed(folder: Path, kind: str, chance: random.Random) -> str:
    """Take the records of a run away, which must say so, and hold what it had in a file that it names."""
    records, elsewhere = folder / RECORDS_FILE, folder.with_suffix(".elsewhere")
    with start(folder) as runner:
        while not records.exists() or not records.stat().st_size:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.4))
        there = len(read_records(folder))
        was_running = runner.poll() is None
        if kind == "records removed":
            records.unlink()
        elif kind == "records moved":
            records.rename(elsewhere)
        elif kind == "folder removed":
            shutil.rmtree(folder, ignore_errors=True)
        else:
            folder.rename(elsewhere)
        _, said = runner.communicate()
    if not was_running:
        return f"{kind} when it was done"
    saved = [file for file in (elsewhere, folder / "records.saved.jsonl", records) if file.exists()]
    kept = sum(len(read_records(file)) for file in saved)
    is_told = any(words in said for words in WORDS)
    if runner.returncode == 0 or not is_told or kept < there:
        raise ValueError(
            f"{folder}: {kind}: {kept} of {there} records, ended with {runner.returncode}: {said}"
        )
    return kind


def _refused(folder: Path, kind: str, chance: random.Random) -> None:
    """Let a run not write at all, or no more; it must say so."""
    if kind == "disk full":
        # A record has some 20 kB.
        with start(folder, most_bytes=chance.randrange(1, 18 * 20_000)) as runner:
            _, said = runner.communicate()
        if runner.returncode == 0:
            return  # There was room for all.
    else:
        folder.mkdir(mode=0o555)
        # root writes whatever the mode says.
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(folder)], check=False)
        with start(folder) as runner:
            _, said = runner.communicate()
        if mounted.returncode == 0:
            subprocess.run(["umount", str(folder)], check=True)
        folder.chmod(0o755)
    _check_told(folder, kind, runner, said)


def _beside_another(folder: Path) -> None:
    """Let a second run begin in the folder of a first, which it must not disturb."""
    with start(folder) as first:
        while not (folder / HOLDER_FILE).exists() and first.poll() is None:
            time.sleep(0.01)
        with start(folder) as second:
            _, said = second.communicate()
        _, first_said = first.communicate()
    if first.returncode != 0:
        raise ValueError(f"{folder}: beside a second writer the first ended so: {first_said}")
    if second.returncode != 0:  # Else the first was done by then.
        _check_told(folder, "second writer", second, said)


def _check_told(folder: Path, kind: str, runner: subprocess.Popen[str], said: str) -> None:
    if runner.returncode == 0 or not any(words in said for words in WORDS):
        raise ValueError(f"{folder}: {kind}: ended with {runner.returncode}: {said}")


def undisturbed(folder: Path) -> dict[Key, dict[str, Any]]:
    """Return the metrics of each job of a run that nothing happens to."""
    with start(folder) as runner:
        runner.communicate()
    return finished(folder)


def _kill(victim: str, runner: subprocess.Popen[str], pid_file: Path) -> str:
    if runner.poll() is not None:
        return "nothing, it was done"
    if victim == "runner":
        runner.kill()
        runner.communicate()
        return victim
    while runner.poll() is None:
        # A worker lives for a moment only, and between two of them there is none.
        with contextlib.suppress(OSError, ValueError):
            worker = int(pid_file.read_text())
            server = _parent(worker)
            if _parent(server) != runner.pid:
                continue  # The id of a worker that has ended may be another process's by now.
            os.kill(worker if victim == "worker" else server, signal.SIGKILL)
            runner.communicate()
            return victim
    return "nothing, it was done"


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def main(trials: int, kinds: Sequence[str] = DISTURBANCES) -> None:
    """Run trials and print how they went."""
    seed = random.randrange(1 << 32)
    chance, victims = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        expected = undisturbed(Path(name) / "undisturbed")
        for number in range(trials):
            folder = Path(name) / str(number)
            victims[trial(folder, chance, kinds)] += 1
            if finished(folder) != expected:
                raise ValueError(f"{folder} (seed {seed}): not the records of an undisturbed run")
    done = ", ".join(f"{victim}: {count}" for victim, count in victims.most_common())
    print(f"{trials} trials, each with all {len(expected)} records once and whole; seed {seed}; {done}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
