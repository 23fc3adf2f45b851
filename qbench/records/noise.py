"""How far processes of the same code differ on this machine: a small file in the user's settings."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qbench.errors import RecordError
from qbench.records.record import utc_now

VERSION = 1


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


def config_folder() -> Path:
    """Return the folder of what belongs to this machine: QBENCH_CONFIG_DIR or XDG_CONFIG_HOME/qbench."""
    own = os.environ.get("QBENCH_CONFIG_DIR")
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(own) if own else Path(base) / "qbench"


def noise_file(device: str, machine: str) -> Path:
    """Return the file for a device and the name of its card or processor."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", machine).strip("-").lower() or "unknown"
    return config_folder() / f"noise-{device}-{name}.json"


def write_noise(noise: Noise) -> Path:
    """Store what was measured in place of what was known; return the file. Raises RecordError."""
    file = noise_file(noise.device, noise.machine)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"version": VERSION, **asdict(noise)}, indent=1) + "\n", encoding="utf-8")
        part.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise RecordError(
            f"{file}: cannot be written: {error.strerror}; set QBENCH_CONFIG_DIR to another folder"
        ) from error
    return file


def read_noise(device: str | None, machine: str | None) -> Noise | None:
    """Return what is known of a machine's noise; None when nothing is, or the file is not of this version."""
    if device is None or machine is None:
        return None
    try:
        return _parsed(json.loads(noise_file(device, machine).read_bytes()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # It is only advice, and `qbench calibrate --noise` makes it anew.


def _parsed(values: dict[str, Any]) -> Noise | None:
    if values.pop("version") != VERSION:
        return None
    spreads = {
        name: Spread(process=float(each["process"]), pair=float(each["pair"]))
        for name, each in values.pop("spreads").items()
    }
    return Noise(**values, spreads=spreads)
