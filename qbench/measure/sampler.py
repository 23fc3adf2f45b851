"""Sample a GPU from a process at its side, which loads no torch and disturbs no step.

A peak between two samples is missed, so that the largest value is a sampled one and is stored as such,
with interval and count. It runs while a point loads, warms up and makes its memory pass, and has ended
before the timing pass; there the driver's own counters are read at both ends instead.
"""

from __future__ import annotations

import importlib
import json
import select
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from qbench.measure.monitor import NvmlMonitor, growth
from qbench.measure.start import module_command
from qbench.records.parts import Sampled

NVML_MONITOR = "qbench.measure.monitor:nvml_monitor"
INTERVAL_S = 0.05
END_GRACE_S = 5.0


@dataclass(slots=True)
class Extremes:
    """Smallest, mean and largest of the values of one reading; those that were absent do not count."""

    count: int = 0
    total: float = 0.0
    smallest: float = float("inf")
    largest: float = float("-inf")

    def add(self, value: float) -> None:
        """Count one value."""
        self.count += 1
        self.total += value
        self.smallest, self.largest = min(self.smallest, value), max(self.largest, value)

    def summary(self) -> dict[str, float]:
        """Return min, mean, max and count."""
        mean = self.total / self.count
        return {"min": self.smallest, "mean": mean, "max": self.largest, "count": self.count}


def sample_until_told(monitor: NvmlMonitor, interval_s: float, stop: int) -> dict[str, Any]:
    """Return what a monitor reads, every so many seconds, until the file `stop` can be read or has ended."""
    readings: dict[str, Extremes] = {}
    reasons: dict[str, None] = {}
    count, last, before, start = 0, False, monitor.counters(), time.monotonic()
    while True:
        count += 1
        for name, value in monitor.readings().items():
            if value is not None:
                readings.setdefault(name, Extremes()).add(value)
        reasons |= dict.fromkeys(monitor.event_reasons())
        if last:
            break
        last = bool(select.select([stop], [], [], interval_s)[0])
    return {
        "interval_s": interval_s,
        "count": count,
        "seconds": time.monotonic() - start,
        "readings": {name: extremes.summary() for name, extremes in readings.items()},
        "event_reasons": list(reasons),
        "counters": growth(before, monitor.counters()),
    }


class Sampler:
    """The process at the side. Enter it to start, call `stop` for what it saw; it ends with this process.

    `monitor` is MODULE:FUNCTION of a context manager that yields an NvmlMonitor or its like, or None: it
    travels by name.
    """

    def __init__(self, monitor: str = NVML_MONITOR, interval_s: float = INTERVAL_S) -> None:
        arguments = [monitor, str(interval_s)]
        root = Path(__file__).parents[2]
        self._command = module_command(sys.executable, "qbench.measure.sampler", arguments, [root])
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Sampler:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,  # Its end is the sign to stop, and comes with our own end, too.
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Id of the process while it runs."""
        return None if self._process is None else self._process.pid

    def stop(self) -> Sampled | None:
        """End the process; return what it saw, None when it saw no device or does not answer."""
        process, self._process = self._process, None
        if process is None:
            return None
        try:
            answer, _ = process.communicate(timeout=END_GRACE_S)
            found: Sampled | None = json.loads(answer)
        except (subprocess.TimeoutExpired, ValueError):
            process.kill()
            process.communicate()
            return None
        return found


def main(arguments: list[str]) -> None:
    """Serve as the process at the side: sample until standard input ends, then write one JSON document."""
    module, _, function = arguments[0].partition(":")
    opened: AbstractContextManager[NvmlMonitor | None] = getattr(importlib.import_module(module), function)()
    with opened as monitor:
        found = (
            None if monitor is None else sample_until_told(monitor, float(arguments[1]), sys.stdin.fileno())
        )
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
