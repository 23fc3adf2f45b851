"""Devices that stand in for a GPU in the process at the side of a measurement."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path


class Rising:
    """Uses 1000 bytes more at each sample, never says its power, and has drawn 5 J more when asked again."""

    def __init__(self) -> None:
        self.samples = 0
        self.asked = 0

    def readings(self) -> dict[str, float | None]:
        self.samples += 1
        if "RISING_SAMPLES" in os.environ:
            Path(os.environ["RISING_SAMPLES"]).write_text(str(self.samples))
        return {"memory_used_bytes": 1000 * self.samples, "power_w": None, "temperature_c": 40}

    def event_reasons(self) -> list[str]:
        return ["sw_power_cap"] if self.samples > 1 else ["gpu_idle"]

    def counters(self) -> dict[str, float | None]:
        self.asked += 1
        return {"energy_j": 5.0 * self.asked, "throttled_thermal_s": None}


@contextlib.contextmanager
def rising() -> Iterator[Rising]:
    yield Rising()


@contextlib.contextmanager
def absent() -> Iterator[None]:
    yield None


@contextlib.contextmanager
def crashing() -> Iterator[None]:
    os._exit(3)
    yield


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Hang, whatever happens to standard input."""
    time.sleep(600)
    yield


class Tells(Rising):
    """Says by a reason which heavy modules its process has loaded."""

    def event_reasons(self) -> list[str]:
        return sorted({"torch", "numpy", "transformers"} & set(sys.modules))


@contextlib.contextmanager
def tells() -> Iterator[Tells]:
    yield Tells()
