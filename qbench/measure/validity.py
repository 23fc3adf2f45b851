"""What speaks for and against a measurement: findings that are stored beside its numbers.

A finding never changes a number. `invalid` says that some metrics must not be used, and which; `warn` that a
reader should know of it.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from qbench.measure.monitor import POLICIES
from qbench.measure.warmup import STEADY_SHARE, STEADY_STEPS, WarmUp
from qbench.records.parts import ValidityFinding

Validity = Literal["ok", "warn", "invalid"]

SPEED = ("step_time_s", "tokens_per_s")
"""The metrics of a timing pass."""

THROTTLED_SHARE = 0.01
"""Share of the timed window above which throttling is reported."""

BUSY_SHARE = 0.1
"""Share of the CPUs above which work of other processes is reported."""

GAP_SHARE = 0.01
"""Share of the window, or of a step, within which host and GPU count as equally long at work."""


def _finding(
    name: str, value: float | bool | None, why: str, validity: Validity | bool = True
) -> ValidityFinding:
    """Return one thing that was looked at; in place of a validity, whether all is well.

    `why` says what it means, without numbers, so that equal findings can be counted.
    """
    verdict = validity if isinstance(validity, str) else "ok" if validity else "warn"
    voids = [*SPEED] if verdict == "invalid" else []
    return {"name": name, "value": value, "verdict": verdict, "why": why, "voids": voids}


def allocator(retries: int | None, ooms: int | None) -> ValidityFinding:
    """Judge whether torch's allocator hit the end of the card's memory."""
    hits = None if retries is None or ooms is None else retries + ooms
    if hits:
        why = "the allocator emptied its cache to find memory: the run is at the card's limit, which slows it"
        return _finding("allocator_retries", hits, why, "invalid")
    return _finding("allocator_retries", hits, "memory sufficed")


def warm(done: WarmUp) -> ValidityFinding:
    """Judge whether the warm-up ended steady."""
    why = f"the last {STEADY_STEPS} steps before the timed ones took equally long"
    if not done.steady:
        why = f"the last {STEADY_STEPS} warm-up steps still differ by more than {100 * STEADY_SHARE:.0f} %"
    return _finding("warmup_steady", done.steady, why, done.steady)


def code(git_dirty: bool | None) -> ValidityFinding | None:
    """Judge whether the code is that of a commit; None outside a checkout."""
    if git_dirty is None:
        return None
    why = "uncommitted changes: the commit does not name this code" if git_dirty else "as committed"
    return _finding("git_dirty", git_dirty, why, not git_dirty)


def compiled_graphs() -> int:
    """Return how many graphs torch.compile has made in this process."""
    dynamo: Any = sys.modules.get("torch._dynamo.utils")
    return 0 if dynamo is None else int(dynamo.counters["stats"]["unique_graphs"])


def compiled(before: int, after: int) -> ValidityFinding | None:
    """Judge the compilations of the timed window, given the graphs at its ends; None without any at all."""
    if after == 0:
        return None
    if after > before:
        why = "torch.compile ran during the timed steps"
        return _finding("recompiles", after - before, why, "invalid")
    return _finding("recompiles", 0, "compiled before the timed steps")


def others_on_cpu(
    busy_cpus: float | None, load_average: float | None, cpu_count: int | None
) -> ValidityFinding | None:
    """Judge the work of other processes: CPUs kept busy during the timed steps, else the load before them."""
    if not cpu_count or (busy_cpus is None and load_average is None):
        return None
    if busy_cpus is not None:
        is_busy = busy_cpus > BUSY_SHARE * cpu_count
        why = (
            "other processes used the CPUs during the timed steps"
            if is_busy
            else "no significant CPU use by other processes"
        )
        return _finding("other_cpus_busy", busy_cpus, why, not is_busy)
    is_busy = load_average is not None and load_average > cpu_count
    why = "the load average exceeded the number of CPUs" if is_busy else "CPUs were available"
    return _finding("load_average_before", load_average, why, not is_busy)


def driver_answers(used_bytes: int | None) -> ValidityFinding:
    """Judge whether NVML was there to be asked."""
    if used_bytes is None:
        why = "NVML does not answer: memory of the device, throttling and other processes are unknown"
        return _finding("nvml", False, why, "warn")
    return _finding("nvml", True, "NVML answers")


def device_choice(note: str | None) -> ValidityFinding | None:
    """Judge whether it is clear which card was meant; None when it is."""
    return None if note is None else _finding("device_choice", None, note, "warn")


def foreign_processes(*seen: Sequence[int] | None) -> ValidityFinding:
    """Judge who else computed on the card, given the ids seen before, during and after; None is unknown."""
    pids = {pid for listed in seen for pid in listed or ()}
    if pids:
        why = "other processes used the card before, during or after the run"
        return _finding("foreign_processes", len(pids), why, "warn")
    if None in seen:
        why = "whether other processes used the card is unknown: the driver does not list process ids here"
        return _finding("foreign_processes", None, why, "warn")
    return _finding("foreign_processes", 0, "no other process used the card")


HELD_DOWN = ("sw_power_cap", "hw_slowdown", "sw_thermal", "hw_thermal", "hw_power_brake")
"""Reasons of the moment (`monitor.EVENT_REASONS`) for which clocks are below what the work could use."""


def throttled(
    counters: dict[str, float | None], window_s: float, reasons: Sequence[str] = ()
) -> Iterator[ValidityFinding]:
    """Judge for each reason how long clocks were held down within the timed window.

    Where the driver counts none of it, only the `reasons` at both ends of the window are known.
    """
    if counters and all(counters.get(f"throttled_{name}_s") is None for name in POLICIES):
        held = [name for name in reasons if name in HELD_DOWN]
        why = "whether clocks were throttled during the timed steps is unknown: the driver does not report it"
        if held:
            why = f"clocks were throttled at the start or end of the timed steps: {', '.join(held)}"
        yield _finding("throttling", True if held else None, why, "warn")
    for name in POLICIES:
        held_s = counters.get(f"throttled_{name}_s")
        if held_s is None:
            continue
        much = held_s > THROTTLED_SHARE * window_s
        why = f"clocks were throttled during the timed steps: {name}" if much else "clocks were not throttled"
        yield _finding(f"throttled_{name}_s", held_s, why, not much)


def host_bound(event_s: Sequence[float], enqueue_s: float, window_s: float) -> ValidityFinding:
    """Judge whether the GPU waited for the host.

    Either the host's clock saw more time than the GPU's events, or the host was still handing out work when
    the GPU had all but ended. The value is the time that the GPU worked on after the host's last call.
    """
    lead_s = window_s - enqueue_s
    gap_s = window_s - sum(event_s)
    waits = lead_s < GAP_SHARE * statistics.median(event_s) or gap_s > GAP_SHARE * window_s
    why = "the host was ahead of the GPU"
    if waits:
        why = "the GPU waits for the host, or a step waits for the GPU: speed depends on the CPU as well"
    return _finding("host_lead_s", lead_s, why, not waits)
