"""How much other processes work on the CPUs that this one may use."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100

SHORTEST_S = 0.5
"""The system counts in hundredths of a second; over less than this they say nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuClock:
    """One instant: the host's clock, and CPU seconds spent by all and by this process."""

    at_s: float
    busy_s: float
    own_s: float


def cpu_clock() -> CpuClock | None:
    """Return the CPU time spent until now on the CPUs that this process may use; None if unavailable."""
    try:
        busy_s = busy_seconds(STAT.read_text(), os.sched_getaffinity(0))
    except (OSError, AttributeError, ValueError):
        return None
    return CpuClock(at_s=time.monotonic(), busy_s=busy_s, own_s=time.process_time())


def busy_seconds(stat: str, cpus: set[int]) -> float:
    """Return the CPU seconds that some CPUs were busy or taken away, from the text of /proc/stat.

    Columns: user, nice, system, idle, iowait, irq, softirq, steal (proc(5)); guest time is within user's.
    """
    ticks = 0
    for line in stat.splitlines():
        name, *columns = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cpus:
            user, nice, system, _, _, irq, softirq, steal = (int(column) for column in columns[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / TICKS_PER_S


def busy_cpus_of_others(before: CpuClock | None, after: CpuClock | None) -> float | None:
    """Return how many CPUs others kept busy on average between two instants; None when that is unknown."""
    if before is None or after is None or after.at_s - before.at_s < SHORTEST_S:
        return None
    others_s = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    return max(0.0, others_s) / (after.at_s - before.at_s)


def load_average() -> float | None:
    """Return the load of the last minute, earlier measurements included; None if there is none."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None
