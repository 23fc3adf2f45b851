"""Diagnostics of a point in a run of its own, after the measuring: memory snapshot and profile of one step.

Both slow a step down and take memory, so that no number of such a run is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from qbench.measure.runner import Executor
from qbench.measure.task import Measurement
from qbench.memory.allocator.config import AllocatorConfig
from qbench.memory.history.recording import record_steps
from qbench.memory.history.snapshot import snapshot_pickle
from qbench.records.files import replaced
from qbench.scenario.schema import Device, Point
from qbench.step.training_step import build_step

DIAGNOSTICS_FOLDER = "diagnostics"
MAX_EVENTS = 1_000_000
"""Allocations and frees that CUDA's snapshot keeps; a step of a 7B model has some ten thousand."""
WARMUP_STEPS = 2
TABLE_ROWS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostics:
    """Requested diagnostics."""

    memory_snapshot: bool
    profile: bool


def diagnose(
    point: Point, device: Device, folder: Path, wanted: Diagnostics, executor: Executor, timeout_s: float
) -> Measurement:
    """Make the diagnostics of a point in a fresh process, as files in FOLDER/diagnostics.

    Return the outcome, with the files' paths in detail.files. Never raises for what the point does. A point
    that runs out of memory leaves the snapshot of how it came to that.
    """
    for old in _files(folder, point):
        old.unlink(missing_ok=True)
    done = executor.run(partial(_diagnosed, point, device, str(folder), wanted), timeout_s, device)
    files = [str(file) for file in _files(folder, point)]
    return Measurement(outcome=done.outcome, detail={**done.detail, "files": files})


def _files(folder: Path, point: Point) -> list[Path]:
    return sorted((folder / DIAGNOSTICS_FOLDER).glob(f"{point.point_id}.*"))


def _diagnosed(point: Point, device: Device, folder: str, wanted: Diagnostics) -> Measurement:
    stem = Path(folder) / DIAGNOSTICS_FOLDER / point.point_id
    stem.parent.mkdir(parents=True, exist_ok=True)
    if wanted.memory_snapshot:
        _cuda_snapshot(point, stem) if device == "cuda" else _cpu_snapshot(point, stem)
    if wanted.profile:
        _profile(point, device, stem)
    return Measurement(outcome="ok")


def _cuda_snapshot(point: Point, stem: Path) -> None:
    """Write torch's own snapshot of loading and two steps, also where memory runs out on the way."""
    torch.cuda.memory._record_memory_history(max_entries=MAX_EVENTS)
    try:
        step = build_step(point, "cuda")
        for _ in range(WARMUP_STEPS):
            step.run()
        torch.cuda.synchronize()
    finally:
        with replaced(stem.with_suffix(".pickle")) as part:
            torch.cuda.memory._dump_snapshot(str(part))
        torch.cuda.memory._record_memory_history(enabled=None)


def _cpu_snapshot(point: Point, stem: Path) -> None:
    """Write the ledger's history of two steps, replayed through the model of CUDA's caching allocator."""
    ledger = record_steps(build_step(point, "cpu"), {"cpu"}, "cpu").ledger
    with replaced(stem.with_suffix(".pickle")) as part:
        part.write_bytes(snapshot_pickle(ledger, AllocatorConfig()))


def _profile(point: Point, device: Device, stem: Path) -> None:
    """Write the trace of one step after warm-up, and a table of its operators by their own time."""
    step = build_step(point, device)
    for _ in range(WARMUP_STEPS):
        step.run()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    wait()
    with profile(activities=activities, record_shapes=True) as profiler:
        step.run()
        wait()
    order = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    with replaced(stem.with_suffix(".trace.json")) as part:
        profiler.export_chrome_trace(str(part))
    with replaced(stem.with_suffix(".ops.txt")) as part:
        table = profiler.key_averages().table(sort_by=order, row_limit=TABLE_ROWS)
        part.write_text(f"{point.label}, one step on {device}\n{table}", encoding="utf-8")
