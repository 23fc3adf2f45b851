"""Warm up by count, and then by time until the steps take equally long.

The steps that the scenario asks for train as any other. If they have not become steady, rehearsals follow:
the same passes without the optimizer's update, so that a machine that needs longer to warm up trains no more
steps than another, and losses stay comparable.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from qbench.records.parts import Detail
from qbench.scenario.schema import RunDevice
from qbench.step.training_step import TrainingStep

STEADY_STEPS = 3
STEADY_SHARE = 0.05
"""Steady: each of the last STEADY_STEPS times is within this share of their median."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """For how many seconds a warm-up goes on."""

    least_s: float
    """A GPU's clocks rise for some time after the first work, however equal two steps in a row are."""
    most_s: float
    """Rehearsals end here, steady or not; STEADY_STEPS of them are made in any case, but none for 0."""


PATIENCE: dict[RunDevice, Patience] = {
    "cpu": Patience(least_s=0.0, most_s=0.5),
    "cuda": Patience(least_s=1.0, most_s=10.0),
    "null": Patience(least_s=0.0, most_s=0.0),
}


def patience_on(device: RunDevice, is_alone: bool) -> Patience:
    """Return the patience of a process; several of a group take steps together, so none has its own."""
    return PATIENCE[device] if is_alone else PATIENCE["null"]


@dataclass(slots=True, kw_only=True)
class WarmUp:
    """What a warm-up did."""

    step_time_s: list[float] = field(default_factory=list)
    """Of the steps that trained."""
    rehearsal_time_s: list[float] = field(default_factory=list)
    """Of the passes that did not."""
    losses: list[float] = field(default_factory=list)
    """Of the steps that trained."""
    steady: bool = False

    def as_detail(self) -> Detail:
        """Return the raw times as they are stored."""
        return {
            "warmup_step_time_s": self.step_time_s,
            "rehearsal_time_s": self.rehearsal_time_s,
            "warmup_steady": self.steady,
        }


def is_steady(seconds: Sequence[float]) -> bool:
    """Say whether the last STEADY_STEPS times are within STEADY_SHARE of their median."""
    last = seconds[-STEADY_STEPS:]
    middle = statistics.median(last) if last else 0.0
    return len(last) == STEADY_STEPS and all(abs(time_s - middle) <= STEADY_SHARE * middle for time_s in last)


def warm_up(step: TrainingStep, count: int, patience: Patience) -> WarmUp:
    """Return the warm-up of a training step: `count` steps, then rehearsals until they are steady."""
    done = WarmUp()
    start = time.perf_counter()
    for _ in range(count):
        seconds, loss = _timed(step.run)
        done.step_time_s.append(seconds)
        done.losses.append(loss)
    done.steady = is_steady(done.step_time_s)
    while patience.most_s and not (done.steady and time.perf_counter() - start >= patience.least_s):
        if len(done.rehearsal_time_s) >= STEADY_STEPS and sum(done.rehearsal_time_s) >= patience.most_s:
            break
        done.rehearsal_time_s.append(_timed(step.rehearse)[0])
        done.steady = is_steady(done.rehearsal_time_s)
    return done


def _timed(work: Callable[[], torch.Tensor]) -> tuple[float, float]:
    """Return seconds and loss; fetching the loss waits for the device."""
    start = time.perf_counter()
    loss = work().item()
    return time.perf_counter() - start, loss
