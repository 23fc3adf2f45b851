"""Real processes for the trials of the gate: the same code again and again, and slowdowns that are real.

    python -m benchmarks.gate_processes FILE [--seconds 200] [--busy 0]

measures one small point in fresh processes until the time is over and appends a line for each to FILE, so
that several calls, hours apart, add up. A round is a pair of processes for each kind, the first of them the
code as it is, and the second

    same     the code as it is, too
    5 % ...  with work after each step that takes this share of its time
    memory   with a tensor of 2 % of the peak that lives through each step; in the first rounds only

Every other round goes backwards, so that each kind is measured in the order A B B A.

`--busy N` keeps N other processes at work beside them, as on a machine that others use, too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from qbench.measure.executors.local import LocalExecutor
from qbench.measure.task import Attempt, Measurement, Task
from qbench.measure.worker import run_task
from qbench.scenario.schema import LoraSettings, MeasureSettings, Point, TrainSettings

POINT = Point(
    model="EleutherAI/pythia-14m",
    precision="nf4-dq",
    lora=LoraSettings(r=8),
    train=TrainSettings(seq_len=32, gradient_checkpointing=False),
)
SETTINGS = MeasureSettings(warmup_steps=1, steps=15, timeout_s=60)
SLOWDOWNS = {"same": 0.0, "5 %": 0.05, "8 %": 0.08, "15 %": 0.15, "memory": 0.0}
MEMORY_ROUNDS = 4
"""Of each call; memory repeats to the byte, so few show what many would."""
GROWTH = 0.02
KEPT = ("step_time_s", "peak_allocated_bytes", "static_bytes", "trainable_params", "total_params")

BURSTS = """
import random, time
while True:
    end = time.perf_counter() + random.expovariate(0.5)
    while time.perf_counter() < end: pass
    time.sleep(random.expovariate(0.5))
"""
"""Work of somebody else: two seconds of it, two of none, at random."""


def planted(task: Task, slowdown: float, growth_bytes: int) -> Measurement:
    """Measure a task whose steps do more work, or hold more memory, than the code says; an engine.

    It changes the step's class for good, so the process must be its own.
    """
    import torch

    from qbench.step.training_step import TrainingStep

    original = TrainingStep.run

    def run(step: TrainingStep) -> torch.Tensor:
        start = time.perf_counter()
        held = torch.empty(growth_bytes, dtype=torch.uint8)
        loss = original(step)
        until = time.perf_counter() + slowdown * (time.perf_counter() - start)
        while slowdown and time.perf_counter() < until:
            held.numel()
        return loss

    setattr(TrainingStep, "run", run)  # noqa: B010
    return run_task(task)


def rounds(seconds: float) -> Iterator[dict[str, Any]]:
    """Yield a line for each process, until the time is over; a round that has begun is finished."""
    executor, end, number, peak = LocalExecutor(), time.monotonic() + seconds, 0, 0
    session = f"{time.time():.0f}"
    executor.run(_planted(0), 120, "cpu")  # The fork server imports; nobody times it.
    while time.monotonic() < end:
        kinds = [kind for kind in SLOWDOWNS if kind != "memory" or number < MEMORY_ROUNDS]
        order = [(kind, side) for kind in kinds for side in ("a", "b")][:: -1 if number % 2 else 1]
        for kind, side in order:
            slowdown = SLOWDOWNS[kind] if side == "b" else 0.0
            growth = int(GROWTH * peak) if (kind, side) == ("memory", "b") else 0
            start = time.time()
            done = executor.run(_planted(number, slowdown, growth), 60, "cpu")
            if done.outcome != "ok":
                raise SystemExit(f"a process ended in {done.outcome}: {done.detail}")
            peak = peak or done.metrics["peak_allocated_bytes"]
            metrics = {name: done.metrics[name] for name in KEPT}
            metrics["step_time_s"] = [round(seconds, 7) for seconds in metrics["step_time_s"]]
            place = {"session": session, "round": number, "kind": kind, "side": side}
            yield {**place, "start": round(start, 2), **metrics}
        number += 1


def _planted(repeat: int, slowdown: float = 0.0, growth_bytes: int = 0) -> Attempt:
    task = Task(point=POINT, device="cpu", settings=SETTINGS, repeat=repeat)
    return partial(planted, task, slowdown, growth_bytes)


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep some other processes at work in bursts."""
    others = [subprocess.Popen([sys.executable, "-c", BURSTS]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def collect(file: Path, seconds: float, others: int) -> None:
    """Append processes to a file, until the time is over, beside some others that work in bursts."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream, busy(others):
        for line in rounds(seconds):
            stream.write(json.dumps(line | {"busy": others}, separators=(",", ":")) + "\n")
            stream.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=200)
    parser.add_argument("--busy", type=int, default=0)
    given = parser.parse_args()
    collect(given.file, given.seconds, given.busy)
