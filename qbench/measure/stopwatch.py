"""How long a function takes on a device, over and over until it is known.

What it returns is kept for a while, as training keeps activations: memory that was freed a moment ago is
still in the cache and has its pages, which makes a kernel up to three times as fast.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import torch

from qbench.memory.work.op_costs import tensors
from qbench.units import MIB

BUDGET_S = 0.01
"""Time for one kernel, warm-up aside; some three hundred are timed in about a minute."""
LEAST_RUNS = 3
MOST_RUNS = 200


KEPT_BYTES = 128 * MIB
"""Outputs that are kept at a time."""


def seconds_of(
    functions: Sequence[Callable[[], Any]],
    device: str,
    budget_s: float = BUDGET_S,
    *,
    keeps: bool = True,
    least_runs: int = LEAST_RUNS,
) -> float:
    """Return the median seconds of functions that do the same, in turn; the device's work is waited for.

    Without `keeps` each may write where the one before did. What takes longer than the budget runs
    `least_runs` times after one to warm up.
    """
    timed = _timed_on_cuda if device == "cuda" else _timed_on_cpu
    timed(functions[0])
    first, made = timed(functions[-1])
    most = max(1, KEPT_BYTES // max(1, _bytes(made))) if keeps else 1
    del made
    # A run that is longer than the budget counts: cold code and caches are too little of it to matter.
    seconds = [first] if first >= budget_s else []
    runs = max(least_runs, min(MOST_RUNS, int(budget_s / max(first, 1e-9)))) - len(seconds)
    kept: list[Any] = []
    for _, function in zip(range(runs), cycle(functions), strict=False):
        if len(kept) >= most:
            kept.clear()
        took, made = timed(function)
        seconds.append(took)
        kept.append(made)
        del made
    return statistics.median(seconds)


def _bytes(made: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors(made))


def _timed_on_cpu(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    made = function()
    return time.perf_counter() - start, made


def _timed_on_cuda(function: Callable[[], Any]) -> tuple[float, Any]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    made = function()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3, made
