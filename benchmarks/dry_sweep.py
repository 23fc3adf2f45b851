"""What the runner itself costs: a sweep of 10,000 points whose plans and measurements take no time.

    python -m benchmarks.dry_sweep

prints milliseconds a job, and by how much the memory of the runner has grown after so many points, first in
an empty run folder, then when the same sweep is continued with nothing left to do. Linux only.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path

from qbench.measure.failures import attempt
from qbench.measure.task import Attempt, Measurement, Task
from qbench.records.record import Record
from qbench.runs.plans import PlanFor, plan_record
from qbench.runs.run import Job, Progress, run_scenario
from qbench.scenario.expand import expand
from qbench.scenario.schema import Device, Point, Scenario
from qbench.units import MIB

POINTS = 10_000
MARKS = (1_000, 5_000, 10_000)
STEPS = 10
"""Raw step times in each record, as many as a scenario has by default."""

SCENARIO = Scenario(
    name="dry",
    question="What does the runner cost?",
    base={"model": "HuggingFaceTB/SmolLM2-135M"},
    matrix={"r": list(range(1, POINTS + 1))},
    measure={"repeats": 1, "steps": STEPS},  # type: ignore[arg-type]
)


class InThisProcess:
    """Stands where an executor does, without a process."""

    def run(self, work: Attempt, timeout_s: float, device: Device) -> Measurement:
        """Return the measurement of work done in this process."""
        return attempt(work)


def planner(points: Sequence[Point], settings: PlanFor) -> Generator[tuple[int, Record]]:
    """Yield plans that take no time."""
    for index, point in enumerate(points):
        yield (
            index,
            plan_record(
                point,
                settings,
                Measurement(outcome="ok", metrics={"peak_allocated_bytes": 1 << 30, "flops": 1}),
            ),
        )


def engine(task: Task) -> Measurement:
    """Return a measurement that takes no time."""
    return Measurement(outcome="ok", metrics={"step_time_s": [0.123456789] * STEPS, "loss": 2.5})


def status_bytes(field: str) -> int:
    """Return a memory figure of this process as the kernel counts it: VmRSS now, VmHWM at most so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise LookupError(field)


def sweep(points: tuple[Point, ...], folder: Path) -> None:
    """Run a sweep into a folder and print what it cost."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # The highest figure begins anew from the present one.
    before, start = status_bytes("VmRSS"), time.process_time()

    def watch(progress: Progress, job: Job, record: Record | None) -> None:
        measured = progress.done - len(points)
        if record is not None and measured in MARKS:
            grown = (status_bytes("VmRSS") - before) / MIB
            print(f"  after {measured:,} points: {grown:+.1f} MiB")

    done = run_scenario(
        SCENARIO, points, folder, "cpu", InThisProcess(), watch, engine=engine, planner=planner
    )
    per_job = (time.process_time() - start) * 1000 / done.total
    highest = (status_bytes("VmHWM") - before) / MIB
    print(f"  {per_job:.2f} ms of CPU a job ({done.total:,} jobs), at most {highest:+.1f} MiB")


def main() -> None:
    """Print what an empty and a finished sweep cost."""
    points = expand(SCENARIO)
    print(f"{POINTS:,} points, {status_bytes('VmRSS') / MIB:.0f} MiB before the sweep")
    with tempfile.TemporaryDirectory() as name:
        for text in ("a new sweep", "the same again, nothing left to do"):
            print(text)
            sweep(points, Path(name))


if __name__ == "__main__":
    main()
