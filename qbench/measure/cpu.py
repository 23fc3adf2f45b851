"""Measure a point on the CPU: a memory pass under the ledger, then a timing pass without it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from qbench.distributed.gloo import without_gloo
from qbench.measure import validity
from qbench.measure.environment import git_state, machine
from qbench.measure.host_load import busy_cpus_of_others, cpu_clock, load_average
from qbench.measure.quality import quality_detail, quality_metrics, text_loss
from qbench.measure.task import Measurement, Phase, Task
from qbench.measure.warmup import patience_on, warm_up
from qbench.memory.history.breakdown import profile
from qbench.memory.history.recording import record_steps
from qbench.memory.kernels.replacements import kernels_of
from qbench.records.parts import Detail, Metrics
from qbench.step.training_step import TrainingStep, build_step

if TYPE_CHECKING:
    from qbench.distributed.session import Session


def measure_cpu(task: Task, on_phase: Phase, session: Session | None = None) -> Measurement:
    """Return the measurement of one point in this process; `on_phase` hears of each phase as it begins.

    `session` is that of a process that has joined a group of several.

    Memory is the sum of live tensor storages of the real step; times are wall times of whole optimizer
    steps. The losses are those of all steps in order, memory pass and warm-up included.
    """
    load_before = load_average()
    start = time.perf_counter()
    step = build_step(task.point, "cpu", share=None if session is None else session.share)
    load_time = time.perf_counter() - start
    step.on_phase = on_phase
    loss_before = text_loss(step)
    with kernels_of("cpu"):
        recording = record_steps(step, {"cpu"}, "cpu", load=None if session is None else session.attach)
    memory = profile(recording.ledger if session is None else without_gloo(recording.ledger, task.point))
    warm = warm_up(step, task.settings.warmup_steps, patience_on("cpu", session is None))
    graphs, clock = validity.compiled_graphs(), cpu_clock()
    times, timed_losses = timed_steps(step, task.settings.steps)
    busy_cpus = busy_cpus_of_others(clock, cpu_clock())
    findings = [
        validity.warm(warm),
        validity.others_on_cpu(busy_cpus, load_before, machine("cpu")["cpu_count"]),
        validity.compiled(graphs, validity.compiled_graphs()),
        validity.code(git_state()["git_dirty"]),
    ]
    tokens = task.point.tokens_per_step
    losses = recording.losses + warm.losses + timed_losses
    loss_after = text_loss(step)
    quality = quality_detail(step, task, (loss_before, loss_after), len(losses))
    metrics: Metrics = {
        "trainable_params": step.facts.trainable_params,
        "total_params": step.facts.total_params,
        "static_bytes": memory.static_bytes,
        "peak_allocated_bytes": memory.peak_bytes,
        "breakdown_bytes": memory.breakdown,
        "peak_at": memory.peak_at,
        "step_time_s": [*times],
        "tokens_per_s": [tokens / seconds for seconds in times],
        "loss": [*losses],
        **quality_metrics(quality),
    }
    detail: Detail = {
        "model": step.facts.checkable(),
        "static_breakdown_bytes": memory.static_breakdown,
        "phases": memory.phases,
        "timeline": memory.timeline,
        "load_time_s": load_time,
        "load_average_before": load_before,
        **warm.as_detail(),
        "validity": [finding for finding in findings if finding is not None],
        "loss_before": loss_before,
        "loss_after": loss_after,
        "quality": quality,
    }
    return Measurement(outcome="ok", metrics=metrics, detail=detail)


def timed_steps(step: TrainingStep, count: int) -> tuple[list[float], list[float]]:
    """Return (seconds, loss) of each of `count` steps."""
    times, losses = [], []
    for _ in range(count):
        start = time.perf_counter()
        loss = step.run()
        times.append(time.perf_counter() - start)
        losses.append(loss.item())
    return times, losses
