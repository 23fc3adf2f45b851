"""How far processes of the same code differ on this machine: a small file in the user's settings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qbench.files import read_bytes
from qbench.records.files import machine_file, write_whole
from qbench.records.record import utc_now

VERSION = 1

ELSEWHERE = "set QBENCH_CONFIG_DIR to another folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Standard deviations of the logarithm of a metric, so 0.02 is about 2 %."""

    process: float
    """Of one process among all."""
    pair: float
    """Of the ratio of two processes next to each other, the outermost eighths pulled in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """What was measured."""

    device: str
    machine: str
    """Name of the card, or of the processor."""
    label: str
    """The point that was measured."""
    processes: int
    spreads: Mapping[str, Spread]
    """By metric."""
    created_at: str = field(default_factory=utc_now)


def noise_file(device: str, machine: str) -> Path:
    """Return the file for a device and the name of its card or processor."""
    return machine_file("noise", device, machine)


def write_noise(noise: Noise) -> Path:
    """Store what was measured in place of what was known; return the file. Raises RecordError."""
    file = noise_file(noise.device, noise.machine)
    write_whole(file, json.dumps({"version": VERSION, **asdict(noise)}, indent=1) + "\n", ELSEWHERE)
    return file


def read_noise(device: str | None, machine: str | None) -> Noise | None:
    """Return what is known of a machine's noise; None when nothing is, or the file is not of this version."""
    if device is None or machine is None:
        return None
    try:
        return _parsed(json.loads(read_bytes(noise_file(device, machine))))
    except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return None  # It is only advice, and `qbench calibrate --noise` makes it anew.


def _parsed(values: dict[str, Any]) -> Noise | None:
    if values.pop("version") != VERSION:
        return None
    spreads = {
        name: Spread(process=_deviation(each["process"]), pair=_deviation(each["pair"]))
        for name, each in values.pop("spreads").items()
    }
    return Noise(**values, spreads=spreads)


def _deviation(value: Any) -> float:
    number = float(value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{value!r} is no deviation")
    return number
