"""Measure a point on CUDA: context, load phase, warm-up, a memory pass by phase, then a timing pass.

The memory pass synchronises and resets the allocator's peaks at each phase boundary, which changes speed;
so the timing pass uses other steps and synchronises only at its two ends. A process at the side samples the
card until the memory pass has ended; over the timing pass the driver's own counters are read at both ends.
"""

from __future__ import annotations

import gc
import os
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from qbench.measure import nvml, validity
from qbench.measure.environment import git_state
from qbench.measure.monitor import growth, nvml_monitor
from qbench.measure.nvml import CardState
from qbench.measure.quality import quality_detail, quality_metrics, text_loss
from qbench.measure.reconciliation import CardUse, reconcile
from qbench.measure.sampler import Sampler
from qbench.measure.task import Measurement, Phase, Task
from qbench.measure.warmup import WarmUp, patience_on, warm_up
from qbench.records.parts import Detail, Metrics, ValidityFinding
from qbench.step.training_step import TrainingStep, build_step

if TYPE_CHECKING:
    from qbench.distributed.session import Session

MEMORY_STEPS = 2

States = tuple[CardState, CardState, CardState]
"""The card before CUDA started here, after the memory pass, and after the timing pass."""


def measure_cuda(task: Task, on_phase: Phase, session: Session | None = None) -> Measurement:
    """Return the measurement of one point in this process, which must not have used CUDA before.

    `on_phase` hears of each phase as it begins; `session` is that of one of several processes in a group.
    Raises torch.OutOfMemoryError when the card is too small; the caller makes an outcome of it.
    """
    choice = nvml.pin_device()
    before = nvml.card_state()
    with Sampler() as sampler:
        context_bytes = _open_context(before)
        loaded = _load(task, on_phase, session)
        step = loaded.step
        # The first step makes the optimizer's state and the cuBLAS workspaces; its peak counts as any other.
        warm = warm_up(step, max(1, task.settings.warmup_steps), patience_on(task.device, session is None))
        # Loading counts too: the memory of a run is the largest of its phases, as in a plan.
        peaks = loaded.peaks(on_phase)
        memory_losses = _memory_pass(step, peaks)
        during = nvml.card_state()
        sampled = sampler.stop()
    timing = _counted_timing_pass(step, task.settings.steps)
    stats = torch.cuda.memory_stats()
    use = _card_use(before, context_bytes)
    peak_reserved, outside = peaks.reserved_so_far(), use.outside_bytes
    # All that may be disturbed has been read; only now are the losses fetched and the text gone through.
    losses = warm.losses + memory_losses + [loss.item() for loss in timing.losses]
    loss_after = text_loss(step)
    quality = quality_detail(step, task, (loaded.loss_before, loss_after), len(losses))
    metrics: Metrics = {
        "trainable_params": step.facts.trainable_params,
        "total_params": step.facts.total_params,
        "static_bytes": loaded.static_bytes,
        "peak_allocated_bytes": peaks.allocated,
        "peak_reserved_bytes": peak_reserved,
        "device_bytes": None if outside is None else peak_reserved + outside,
        "step_time_s": [*timing.event_s],
        "tokens_per_s": [task.point.tokens_per_step / seconds for seconds in timing.event_s],
        "loss": [*losses],
        **quality_metrics(quality),
    }
    states = (before, during, use.now)
    detail: Detail = {
        "phases": peaks.by_phase,
        "context_bytes": None if context_bytes is None else [context_bytes, context_bytes],
        "reconciliation_bytes": reconcile(use, context_bytes),
        "device_used_bytes": use.now.used_bytes,
        "foreign_processes": _foreign(states),
        "load_reserved_bytes": loaded.peak_reserved_bytes,
        "sampled": sampled,
        **warm.as_detail(),
        **timing.as_detail(),
        **_allocator_detail(stats),
        "managed_bytes": step.managed_bytes,
        "model": step.facts.checkable(),
        "validity": _findings(choice, states, warm, timing, stats),
        "load_time_s": loaded.seconds,
        "loss_before": loaded.loss_before,
        "loss_after": loss_after,
        "quality": quality,
    }
    return Measurement(outcome="ok", metrics=metrics, detail=detail)


def _card_use(before: CardState, context_bytes: int | None = None) -> CardUse:
    now, reserved_bytes = nvml.card_state(), torch.cuda.memory_reserved()
    return CardUse(before=before, now=now, reserved_bytes=reserved_bytes, context_bytes=context_bytes)


def _open_context(before: CardState) -> int | None:
    """Initialise CUDA; return the device memory that this took, None where NVML cannot tell."""
    torch.cuda.init()
    torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    opened = _card_use(before)
    if opened.outside_bytes is not None:
        return opened.outside_bytes
    if opened.grown_bytes is None or os.getpid() not in (opened.now.pids or ()):
        return None
    # The driver lists this process without its memory, as on Windows; what grew within a second is its own.
    return opened.grown_bytes - opened.reserved_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The step as loaded, and what loading took."""

    step: TrainingStep
    seconds: float
    peak_bytes: int
    peak_reserved_bytes: int
    static_bytes: int
    loss_before: float | None

    def peaks(self, on_phase: Phase) -> PhasePeaks:
        """Return the peaks of loading, to be added to by the phases of the steps."""
        return PhasePeaks(
            on_phase,
            by_phase={"load": self.peak_bytes},
            allocated=self.peak_bytes,
            reserved=self.peak_reserved_bytes,
        )


def _load(task: Task, on_phase: Phase, session: Session | None) -> Loaded:
    """Build the step. What loading left in the allocator's cache stays, as in a program of the user's own.

    Only what the text loss took is given back, since a plan does not compute it, and a model that was whole
    here before FSDP2 sharded it, as accelerate loads it on the host.
    """
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    step = build_step(task.point, "cuda", share=None if session is None else session.share)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    step.on_phase = on_phase
    if session is not None and session.shards:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step.prepare()
    peak_bytes, peak_reserved_bytes = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    static_bytes = torch.cuda.memory_allocated()
    loss_before = text_loss(step)
    if loss_before is not None:
        # The workspaces of cuBLAS are the first step's to make, where a plan has them, too.
        torch._C._cuda_clearCublasWorkspaces()
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return Loaded(
        step=step,
        seconds=seconds,
        peak_bytes=peak_bytes,
        peak_reserved_bytes=peak_reserved_bytes,
        static_bytes=static_bytes,
        loss_before=loss_before,
    )


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

    def reserved_so_far(self) -> int:
        """Return the largest reserved bytes up to now, what ran after the last phase included."""
        return max(self.reserved, torch.cuda.max_memory_reserved())

    def begin(self, phase: str | None) -> None:
        """Close the phase that runs and begin the next; None closes only."""
        if phase is not None:
            self.on_phase(phase)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        self.allocated = max(self.allocated, peak)
        if self._phase is not None:
            self.by_phase[self._phase] = max(self.by_phase.get(self._phase, 0), peak)
        self.reserved = self.reserved_so_far()
        self._phase = phase
        torch.cuda.reset_peak_memory_stats()


def _memory_pass(step: TrainingStep, peaks: PhasePeaks) -> list[float]:
    before = step.on_phase
    step.on_phase = peaks.begin
    try:
        # Losses leave the card at once, so that they do not stand in the memory that is measured.
        losses = [step.run().item() for _ in range(MEMORY_STEPS)]
        peaks.begin(None)
    finally:
        step.on_phase = before
    return losses


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of each step by CUDA events, and of the whole window by the host's clock."""

    event_s: list[float]
    enqueue_s: float
    """Until the host had handed out all work."""
    window_s: float
    """Until the GPU had done it."""
    losses: list[torch.Tensor]
    counters: dict[str, float | None] = field(default_factory=dict)
    """How far the driver's counters grew, from just before to just after the window."""
    reasons: list[str] = field(default_factory=list)
    """Why clocks were where they were, just before and just after the window."""
    graphs: tuple[int, int] = (0, 0)
    """Graphs that torch.compile had made before and after."""

    def as_detail(self) -> Detail:
        """Return what is stored beside the times of the steps."""
        energy = self.counters.get("energy_j")
        return {
            "window_s": self.window_s,
            "enqueue_s": self.enqueue_s,
            "counters": self.counters,
            "energy_j_per_step": None if energy is None else energy / len(self.event_s),
        }


def _counted_timing_pass(step: TrainingStep, count: int) -> Timing:
    with nvml_monitor() as monitor:
        before = monitor.counters() if monitor else {}
        reasons = monitor.event_reasons() if monitor else []
        graphs = validity.compiled_graphs()
        timing = _timing_pass(step, count)
        counters = growth(before, monitor.counters()) if monitor else {}
        reasons = [*dict.fromkeys((*reasons, *(monitor.event_reasons() if monitor else ())))]
    return replace(timing, counters=counters, reasons=reasons, graphs=(graphs, validity.compiled_graphs()))


def _timing_pass(step: TrainingStep, count: int) -> Timing:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    losses = []
    torch.cuda.synchronize()
    start = time.perf_counter()
    events[0].record()
    for event in events[1:]:
        losses.append(step.run())
        event.record()
    enqueue_s = time.perf_counter() - start
    torch.cuda.synchronize()
    window_s = time.perf_counter() - start
    event_s = [events[i].elapsed_time(events[i + 1]) / 1e3 for i in range(count)]
    return Timing(event_s=event_s, enqueue_s=enqueue_s, window_s=window_s, losses=losses)


def _allocator_detail(stats: dict[str, Any]) -> Detail:
    """Return what the allocator counted: failures since the start, peaks since the memory pass."""
    return {
        "num_alloc_retries": stats.get("num_alloc_retries"),
        "num_ooms": stats.get("num_ooms"),
        "requested_bytes": stats.get("requested_bytes.all.peak"),
        "active_bytes": stats.get("active_bytes.all.peak"),
        "inactive_split_bytes": stats.get("inactive_split_bytes.all.peak"),
    }


def _foreign(states: States) -> dict[str, list[int] | None]:
    before, during, after = states
    return {"before": before.foreign(), "during": during.foreign(before), "after": after.foreign(before)}


def _findings(
    choice: nvml.PinnedDevice,
    states: States,
    warm: WarmUp,
    timing: Timing,
    stats: dict[str, Any],
) -> list[ValidityFinding]:
    found = [
        validity.allocator(stats.get("num_alloc_retries"), stats.get("num_ooms")),
        validity.warm(warm),
        validity.driver_answers(states[-1].used_bytes),
        validity.device_choice(choice.note),
        validity.foreign_processes(*_foreign(states).values()),
        *validity.throttled(timing.counters, timing.window_s, timing.reasons),
        validity.host_bound(timing.event_s, timing.enqueue_s, timing.window_s),
        validity.compiled(*timing.graphs),
        validity.code(git_state()["git_dirty"]),
    ]
    return [finding for finding in found if finding is not None]
