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
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from qbench.measure.probe import Probe, growth
from qbench.measure.start import module_command
from qbench.records.parts import Sampled

NVML_PROBE = "qbench.measure.probe:nvml_probe"
INTERVAL_S = 0.05
END_GRACE_S = 5.0


@dataclass(slots=True)
class Series:
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


@dataclass(slots=True)
class Samples:
    """What a probe said, from its first sample on."""

    probe: Probe
    series: dict[str, Series] = field(default_factory=dict)
    reasons: dict[str, None] = field(default_factory=dict)
    count: int = 0

    def take(self) -> None:
        """Ask the probe once."""
        self.count += 1
        for name, value in self.probe.readings().items():
            if value is not None:
                self.series.setdefault(name, Series()).add(value)
        self.reasons |= dict.fromkeys(self.probe.event_reasons())


def sample_until_told(probe: Probe, interval_s: float, stop: int) -> dict[str, Any]:
    """Return what a probe said, every so many seconds, until the file `stop` can be read or has ended."""
    samples, before, start = Samples(probe), probe.counters(), time.monotonic()
    samples.take()
    while not select.select([stop], [], [], interval_s)[0]:
        samples.take()
    samples.take()
    return {
        "interval_s": interval_s,
        "count": samples.count,
        "seconds": time.monotonic() - start,
        "readings": {name: series.summary() for name, series in samples.series.items()},
        "event_reasons": list(samples.reasons),
        "counters": growth(before, probe.counters()),
    }


class Sampler:
    """The process at the side. Enter it to start, call `stop` for what it saw; it ends with this process.

    `probe` is MODULE:FUNCTION of a context manager that yields a Probe or None: it travels by name.
    """

    def __init__(self, probe: str = NVML_PROBE, interval_s: float = INTERVAL_S) -> None:
        arguments = [probe, str(interval_s)]
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
    opened: AbstractContextManager[Probe | None] = getattr(importlib.import_module(module), function)()
    with opened as probe:
        found = None if probe is None else sample_until_told(probe, float(arguments[1]), sys.stdin.fileno())
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
