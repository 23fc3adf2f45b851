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

BUDGET_S = 0.006
"""Time for one kernel in one round, warm-up aside; some eight hundred are timed in each."""
LEAST_RUNS = 2
MOST_RUNS = 400


KEPT_BYTES = 128 * MIB
"""Outputs that are kept at a time."""


def seconds_of(
    functions: Sequence[Callable[[], Any]],
    device: str,
    budget_s: float | None = None,
    *,
    empty: Callable[[], Any] | None = None,
    keeps: bool = True,
) -> float:
    """Return the median seconds of functions that do the same, in turn; the device's work is waited for.

    What `empty` takes, which does the same to almost nothing, is timed in between and taken off. Without
    `keeps` each may write where the one before did. What takes longer than the budget runs LEAST_RUNS times
    after one to warm up.
    """
    budget_s = BUDGET_S if budget_s is None else budget_s
    timed = _timed_on_cuda if device == "cuda" else _timed_on_cpu()
    timed(functions[0])
    first, made = timed(functions[-1])
    most = max(1, KEPT_BYTES // max(1, _bytes(made))) if keeps else 1
    del made
    # A run that is longer than the budget counts: cold code and caches are too little of it to matter.
    seconds = [first] if first >= budget_s else []
    nothing = [] if empty is None else [timed(empty)[0]]
    runs = max(LEAST_RUNS, min(MOST_RUNS, int(budget_s / max(first, 1e-9)))) - len(seconds)
    kept: list[Any] = []
    for _, function in zip(range(runs), cycle(functions), strict=False):
        if len(kept) >= most:
            kept.clear()
        took, made = timed(function)
        seconds.append(took)
        kept.append(made)
        del made
        if empty is not None:
            nothing.append(timed(empty)[0])
    whole = statistics.median(seconds)
    # What is as short as noise still takes some time.
    return max(whole - statistics.median(nothing), whole / 100) if nothing else whole


def _bytes(made: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors(made))


def cpu_seconds() -> Callable[[], float]:
    """Return the clock that others on the machine move least.

    With one thread of torch that is its CPU time, which stands still while something else has the core.
    """
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def _timed_on_cpu() -> Callable[[Callable[[], Any]], tuple[float, Any]]:
    clock = cpu_seconds()

    def timed(function: Callable[[], Any]) -> tuple[float, Any]:
        start = clock()
        made = function()
        return clock() - start, made

    return timed


def _timed_on_cuda(function: Callable[[], Any]) -> tuple[float, Any]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    made = function()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3, made
