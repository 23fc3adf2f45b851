"""Planned step times against measured ones, on this CPU, after calibrating it.

    python -m benchmarks.step_time --out FOLDER [--limit SECONDS]

Calibrates, then trains each configuration for a few steps and holds the median against the plan. It stops
when SECONDS have passed and goes on from there when it is run again, since what is there is kept; delete the
folder to begin anew. Each configuration is measured in a process of its own. Everything runs on one thread:
with two, each waits for the other whenever the machine has anything else to do.

A vCPU is often half a core, so whatever runs beside a measurement may halve its speed: one during which
others kept more than a twentieth of a CPU busy is made again, up to a few times.

What calibration measures are single kernels on a fixed grid of sizes. No figure of it comes from the
configurations.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

NUM_THREADS = 1
QUIET = 0.05
"""CPUs that others may keep busy meanwhile."""
TRIES = 4
WARMUP_STEPS = 2
STEPS = 7

SETTINGS: dict[str, tuple[tuple[int, int, int, bool], ...]] = {
    "HuggingFaceTB/SmolLM2-135M": ((8, 1, 64, False), (64, 1, 128, True), (16, 2, 48, False)),
    "EleutherAI/pythia-70m": ((8, 1, 128, False), (64, 1, 256, True), (16, 4, 48, False)),
}
"""By model: rank, batch size, tokens, checkpointing."""
PRECISIONS = ("fp32", "bf16", "nf4", "nf4-dq")


def points() -> Iterator[Any]:
    """Yield the configurations: every precision with every setting of every model."""
    from qbench.scenario.schema import LoraSettings, Point, TrainSettings

    for model, settings in SETTINGS.items():
        for r, batch, seq_len, checkpointing in settings:
            for precision in PRECISIONS:
                train = TrainSettings(
                    per_device_train_batch_size=batch, seq_len=seq_len, gradient_checkpointing=checkpointing
                )
                yield Point(model=model, precision=precision, lora=LoraSettings(r=r), train=train)  # type: ignore[arg-type]


def measure(index: int) -> dict[str, Any]:
    """Return the seconds of each timed step of one configuration, and how busy others were meanwhile."""
    import torch

    from qbench.measure.cpu import timed_steps
    from qbench.measure.host_load import busy_cpus_of_others, cpu_clock
    from qbench.step.training_step import build_step

    torch.set_num_threads(NUM_THREADS)
    step = build_step(list(points())[index], "cpu")
    timed_steps(step, WARMUP_STEPS)
    before = cpu_clock()
    seconds = timed_steps(step, STEPS)[0]
    return {"seconds": seconds, "others_busy": busy_cpus_of_others(before, cpu_clock())}


def calibration_of(folder: Path) -> Any:
    """Return the calibration in the folder, made now where there is none."""
    from qbench.records.calibration import Calibration, read_calibration

    file = folder / "calibration.json"
    if file.is_file():
        return read_calibration(file)
    import torch

    from qbench.measure.calibrate import calibrate

    torch.set_num_threads(NUM_THREADS)
    found: Calibration = calibrate("cpu")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(found)) + "\n", encoding="utf-8")
    return found


def measured(folder: Path, limit_s: float) -> list[dict[str, Any]]:
    """Return the step times of the configurations measured so far, after measuring more of them."""
    file = folder / "measured.json"
    known: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
    start = time.monotonic()
    for index in range(len(known), len(list(points()))):
        if time.monotonic() - start > limit_s:
            break
        known.append(_undisturbed(index))
        file.write_text(json.dumps(known) + "\n", encoding="utf-8")
    return known


def _undisturbed(index: int) -> dict[str, Any]:
    """Return the first measurement that nobody disturbed, or the least disturbed of a few."""
    found: list[dict[str, Any]] = []
    while len(found) < TRIES:
        found.append(_in_a_process(index))
        if found[-1]["others_busy"] < QUIET:
            break
    return min(found, key=lambda one: float(one["others_busy"]))


def _in_a_process(index: int) -> dict[str, Any]:
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.step_time", "--measure", str(index)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": str(NUM_THREADS)},
    )
    one: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return one


def rows(calibration: Any, times: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each measured configuration: planned and measured seconds, error, parts."""
    from qbench.planner.plan import plan

    found = []
    for point, one in zip(points(), times, strict=False):
        record = plan(point, "cpu", calibrations=[calibration])
        planned, real = record.metrics["step_time_s"], statistics.median(one["seconds"])
        found.append(
            {
                "point": point,
                "planned_s": planned,
                "measured_s": real,
                "error": planned / real - 1,
                "others_busy": one["others_busy"],
                "parts_s": record.detail["time"]["parts_s"],
            }
        )
    return found


def ratio_errors(found: list[dict[str, Any]]) -> list[float]:
    """Return how far the planned ratio of QLoRA's to LoRA's (bf16) step time is from the measured one."""
    lora = {_setting(row["point"]): row for row in found if row["point"].precision == "bf16"}
    errors = []
    for row in found:
        other = lora.get(_setting(row["point"]))
        if row["point"].method == "qlora" and other is not None:
            planned = row["planned_s"] / other["planned_s"]
            errors.append(planned / (row["measured_s"] / other["measured_s"]) - 1)
    return errors


def _setting(point: Any) -> str:
    return str(point.model_copy(update={"precision": "bf16"}))


def report(calibration: Any, found: list[dict[str, Any]]) -> str:
    """Return the comparison as Markdown."""
    from qbench.report.markdown import table_text
    from qbench.report.table import Column, Table

    errors = [abs(row["error"]) for row in found]
    ratios = [abs(error) for error in ratio_errors(found)]
    versions = ", ".join(f"{name} {version}" for name, version in calibration.versions.items())
    lines = [
        "# Planned and measured step times on a calibrated CPU",
        "",
        f"`python -m benchmarks.step_time --out reports/timing`; {calibration.device_name}, "
        f"{calibration.num_threads} thread(s), calibrated {calibration.created_at}; {versions}.",
        f"Each measurement is the median of {STEPS} steps after {WARMUP_STEPS}, in a process of its own.",
        "",
        f"- Step time, {len(errors)} configurations: median error {statistics.median(errors):.1%}, "
        f"largest {max(errors):.1%}.",
        f"- QLoRA over LoRA in bf16, {len(ratios)} pairs: median error {statistics.median(ratios):.1%}, "
        f"largest {max(ratios):.1%}.",
        "",
    ]
    columns = (
        Column("Configuration"),
        Column("Checkpointing"),
        Column("Planned", "s"),
        Column("Measured", "s"),
        Column("Error", "%"),
        Column("CPUs of others"),
    )
    rows = (
        (
            row["point"].label,
            row["point"].train.gradient_checkpointing,
            *(row[name] for name in ("planned_s", "measured_s")),
            100 * row["error"],
            row["others_busy"],
        )
        for row in found
    )
    return "\n".join([*lines, table_text(Table(columns=columns, rows=tuple(rows)))]) + "\n"


def main() -> None:
    """Calibrate, measure, plan, write the report."""
    from qbench.quiet import quiet_libraries

    quiet_libraries()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--limit", type=float, default=3600.0)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure is not None:
        print(json.dumps(measure(given.measure)))
        return
    start = time.monotonic()
    calibration = calibration_of(given.out)
    times = measured(given.out, given.limit - (time.monotonic() - start))
    left = len(list(points())) - len(times)
    if left:
        print(f"{left} configurations left; run again to go on")
        return
    text = report(calibration, rows(calibration, times))
    (given.out / "step_time.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
