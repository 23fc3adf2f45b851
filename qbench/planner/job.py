"""Hours and money of a whole training from the planned time of a step: training, evaluation, checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qbench.records.fits import Fit
from qbench.scenario.schema import Point

SAVED_BYTES_PER_S = (3e9, 1e9, 0.2e9)
"""Assumed speed of the disk, fast, typical and slow: a local NVMe drive, a cloud volume, a network folder."""
SAVED_BYTES = 4 + 8
"""Of each trainable parameter: the weight, and Adam's two states (transformers saves the optimizer, too)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a training does beside its steps; 0 where it does not."""

    tokens: int
    """Tokens that are trained on, in full sequences, all epochs together."""
    eval_tokens: int = 0
    """Tokens of one evaluation."""
    eval_steps: int = 0
    """Optimizer steps between evaluations."""
    save_steps: int = 0
    """Optimizer steps between checkpoints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobTime:
    """What a job takes on one card, or on the point's several."""

    gpu: str
    hours: float
    range_hours: tuple[float, float]
    """By the spread of published rates; the same twice where the card's rates were measured."""
    eval_hours: float
    save_hours: float
    cost_usd: float | None


def job_time(job: Job, point: Point, fit: Fit, trainable_params: float) -> JobTime | None:
    """Return what a job takes on a card that a step was planned for; None where its time is not known.

    Warming up, compiling and waiting for data are left out: minutes, and hidden by the loader's workers.
    """
    if fit.step_time_s is None or fit.time is None:
        return None
    least, most = fit.time.get("range_s") or (fit.step_time_s, fit.step_time_s)
    steps = math.ceil(job.tokens / (point.tokens_per_step * point.num_gpus))
    evaluations = steps // job.eval_steps if job.eval_steps else 0
    saves = steps // job.save_steps if job.save_steps else 0
    # Backward does twice the arithmetic of forward; evaluation neither recomputes nor updates.
    parts = fit.time["parts_s"]
    passes_s = fit.step_time_s - parts.get("optimizer", 0.0) - parts.get("recompute", 0.0)
    eval_share = passes_s / 3 / fit.step_time_s * job.eval_tokens / (point.tokens_per_step * point.num_gpus)
    save_hours = [saves * SAVED_BYTES * trainable_params / speed / 3600 for speed in SAVED_BYTES_PER_S]

    def hours(step_s: float, saving: float) -> float:
        return (steps + evaluations * eval_share) * step_s / 3600 + saving

    total = hours(fit.step_time_s, save_hours[1])
    return JobTime(
        gpu=fit.gpu,
        hours=total,
        range_hours=(hours(least, save_hours[0]), hours(most, save_hours[2])),
        eval_hours=evaluations * eval_share * fit.step_time_s / 3600,
        save_hours=save_hours[1],
        cost_usd=None if fit.usd_per_hour is None else total * fit.usd_per_hour,
    )
