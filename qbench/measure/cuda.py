"""Measure a point on CUDA: context, load phase, warm-up, a memory pass by phase, then a timing pass.

The memory pass synchronises and resets the allocator's peaks at each phase boundary, which changes speed;
so the timing pass uses other steps and synchronises only at its two ends.
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from qbench.measure import nvml
from qbench.measure.task import Measurement, Phase, Task
from qbench.step.training_step import TrainingStep, build_step

MEMORY_STEPS = 2


def measure_cuda(task: Task, on_phase: Phase) -> Measurement:
    """Return the measurement of one point in this process, which must not have used CUDA before.

    `on_phase` hears of each phase as it begins. Raises torch.OutOfMemoryError when the card is too small;
    the caller makes an outcome of it.
    """
    foreign = nvml.foreign_processes()
    context_bytes = _open_context()
    torch.cuda.reset_peak_memory_stats()
    step = build_step(task.point, "cuda")
    step.on_phase = on_phase
    torch.cuda.synchronize()
    load_peak_bytes, load_reserved_bytes = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    static_bytes = torch.cuda.memory_allocated()
    # The first step makes the optimizer's state and the cuBLAS workspaces; its peak counts as any other.
    # Losses leave the card at once, so that they do not stand in the memory that is measured.
    losses = [step.run().item() for _ in range(max(1, task.settings.warmup_steps))]
    # Loading counts too: the memory of a run is the largest of its phases, as in a plan.
    peaks = PhasePeaks(
        on_phase,
        by_phase={"load": load_peak_bytes},
        allocated=load_peak_bytes,
        reserved=load_reserved_bytes,
    )
    losses += _memory_pass(step, peaks)
    device_used_bytes = nvml.device_used_bytes()
    timing = _timing_pass(step, task.settings.steps)
    losses += [loss.item() for loss in timing.losses]
    stats = torch.cuda.memory_stats()
    metrics: dict[str, Any] = {
        "trainable_params": step.facts.trainable_params,
        "total_params": step.facts.total_params,
        "static_bytes": static_bytes,
        "peak_allocated_bytes": peaks.allocated,
        "peak_reserved_bytes": max(peaks.reserved, torch.cuda.max_memory_reserved()),
        "device_bytes": device_used_bytes,
        "step_time_s": timing.event_s,
        "tokens_per_s": [task.point.tokens_per_step / seconds for seconds in timing.event_s],
        "loss": losses,
    }
    detail = {
        "phases": peaks.by_phase,
        "context_bytes": context_bytes,
        "window_s": timing.window_s,
        "num_alloc_retries": stats.get("num_alloc_retries"),
        "num_ooms": stats.get("num_ooms"),
        "inactive_split_bytes": stats.get("inactive_split_bytes.all.peak"),
        "foreign_processes": foreign,
        "foreign_processes_after": nvml.foreign_processes(own_is_listed=True),
        "model": {"dtypes": step.facts.dtypes, "adapted_modules": step.facts.adapted_modules},
    }
    return Measurement(outcome="ok", metrics=metrics, detail=detail)


def _open_context() -> int | None:
    """Initialise CUDA; return the device memory that this took, None where NVML is silent."""
    before = nvml.device_used_bytes()
    torch.cuda.init()
    torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    after = nvml.device_used_bytes()
    return None if before is None or after is None else after - before - torch.cuda.memory_reserved()


@dataclass(slots=True)
class PhasePeaks:
    """Largest allocated bytes within each phase; call it with the name of a phase as it begins."""

    on_phase: Phase
    """Hears of each phase, too."""
    by_phase: dict[str, int] = field(default_factory=dict)
    allocated: int = 0
    """Largest allocated bytes of all phases."""
    reserved: int = 0
    """Largest reserved bytes of all phases."""
    _phase: str | None = None

    def begin(self, phase: str | None) -> None:
        """Close the phase that runs and begin the next; None closes only."""
        if phase is not None:
            self.on_phase(phase)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        self.allocated = max(self.allocated, peak)
        if self._phase is not None:
            self.by_phase[self._phase] = max(self.by_phase.get(self._phase, 0), peak)
        self.reserved = max(self.reserved, torch.cuda.max_memory_reserved())
        self._phase = phase
        torch.cuda.reset_peak_memory_stats()


def _memory_pass(step: TrainingStep, peaks: PhasePeaks) -> list[float]:
    before = step.on_phase
    step.on_phase = peaks.begin
    try:
        losses = [step.run().item() for _ in range(MEMORY_STEPS)]
        peaks.begin(None)
    finally:
        step.on_phase = before
    return losses


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of each step by CUDA events, and of the whole window by the host's clock."""

    event_s: list[float]
    window_s: float
    losses: list[torch.Tensor]


def _timing_pass(step: TrainingStep, count: int) -> Timing:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    losses = []
    torch.cuda.synchronize()
    start = time.perf_counter()
    events[0].record()
    for event in events[1:]:
        losses.append(step.run())
        event.record()
    torch.cuda.synchronize()
    window_s = time.perf_counter() - start
    event_s = [events[i].elapsed_time(events[i + 1]) / 1e3 for i in range(count)]
    return Timing(event_s=event_s, window_s=window_s, losses=losses)
