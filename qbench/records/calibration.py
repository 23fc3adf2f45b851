"""How fast this machine's device is, kernel by kernel: a file in the user's settings for each device."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from qbench.catalog.rows import DATA
from qbench.errors import RecordError
from qbench.files import read_text
from qbench.records.files import config_folder, machine_file, write_whole
from qbench.records.noise import ELSEWHERE
from qbench.records.record import utc_now
from qbench.records.software import library_versions
from qbench.records.stored import Amount

VERSION = 1

QUIET_CPUS = 0.1
"""CPUs that others may keep busy while a device is timed."""

PROFILES = DATA / "profiles"
"""Calibrations of devices that the catalog carries, written by `qbench calibrate --export`."""

MOVES_SPEED = ("torch", "bitsandbytes")
"""Libraries whose kernels were timed; a calibration speaks for these versions only."""


@dataclass(frozen=True, slots=True)
class KernelTime:
    """One kernel at one size; the fields up to `layout` are those of `memory.op_costs.OpCost`."""

    op: str
    kind: str
    dtype: str
    flops: Amount
    num_bytes: Amount
    shape: tuple[int, ...]
    layout: str
    seconds: Amount
    """Median, without what the operator takes on tensors of no size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was measured of a device."""

    device: str
    """cpu or cuda."""
    device_name: str
    num_threads: int | None
    """Threads of torch on the CPU; None for a GPU, which is one whole."""
    versions: Mapping[str, str | None]
    dispatch_s: Mapping[str, Amount]
    """The host's time for one operator of a training step, by phase (forward, backward, optimizer)."""
    kernels: Sequence[KernelTime]
    others_busy_cpus: float | None = None
    """CPUs that other processes kept busy meanwhile, on average; None where that is not known."""
    created_at: str = field(default_factory=utc_now)
    version: int = VERSION
    profile: str = ""
    """Name of the catalog's profile that this is; empty for what was measured on this machine."""

    @property
    def is_quiet(self) -> bool:
        """Whether other processes left the machine alone."""
        return self.others_busy_cpus is None or self.others_busy_cpus <= QUIET_CPUS

    @property
    def is_current(self) -> bool:
        """Whether the libraries are those that were timed."""
        now = library_versions()
        return all(self.versions.get(name) == now[name] for name in MOVES_SPEED)


def calibration_file(device: str, device_name: str, num_threads: int | None) -> Path:
    """Return the file for a device, its name and the number of threads."""
    threads = "" if num_threads is None else f"-{num_threads}-threads"
    return machine_file("calibration", device, device_name, threads)


def export_calibration(found: Calibration, file: Path) -> None:
    """Write what was measured to a file of its own, as the catalog keeps it. Raises RecordError."""
    values = {
        key: value for key, value in asdict(found).items() if key not in ("others_busy_cpus", "profile")
    }
    write_whole(file, json.dumps(values) + "\n", "choose another file for --export")


@functools.cache
def profiles() -> tuple[Calibration, ...]:
    """Return the catalog's calibrations of devices, by file name. Raises RecordError for a damaged one."""
    files = sorted(PROFILES.glob("*.json"))
    return tuple(replace(read_calibration(file), profile=file.stem) for file in files)


def write_calibration(found: Calibration) -> Path:
    """Store what was measured in place of what was known; return the file. Raises RecordError."""
    file = calibration_file(found.device, found.device_name, found.num_threads)
    write_whole(file, json.dumps(asdict(found)) + "\n", ELSEWHERE)
    return file


def read_calibration(file: Path) -> Calibration:
    """Return the calibration in a file. Raises RecordError if it is not a calibration, or is empty."""
    try:
        values = json.loads(read_text(file))
        version = values.get("version") if isinstance(values, dict) else None
        if isinstance(version, int) and version > VERSION:
            raise RecordError(f"{file}: version {version} is newer than {VERSION}; update qbench")
        found: Calibration = TypeAdapter(Calibration).validate_python(values)
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{file}: {_reason(error)}; run `qbench calibrate` again") from error
    if not found.kernels or not found.dispatch_s:
        raise RecordError(f"{file}: the calibration is empty; run `qbench calibrate` again")
    return found


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return getattr(error, "strerror", None) or "not JSON"


def find_calibration(device: str, device_name: str, num_threads: int | None) -> Calibration | None:
    """Return what is known of a device, None where nothing is. Raises RecordError for a damaged file."""
    file = calibration_file(device, device_name, num_threads)
    return read_calibration(file) if file.is_file() else None


def has_calibration(device: str, device_name: str) -> bool:
    """Say whether a device was calibrated, for any number of threads; cheap."""
    stem = calibration_file(device, device_name, None).stem
    return any(config_folder().glob(f"{stem}*.json"))


def gpu_calibrations() -> tuple[Calibration, ...]:
    """Return what is known of GPUs, each with the name that its driver reports. Raises RecordError."""
    return tuple(map(read_calibration, sorted(config_folder().glob("calibration-cuda-*.json"))))


def label(found: Calibration) -> str:
    """Return the device and the date of a calibration in one line."""
    threads = "" if found.num_threads is None else f" {found.num_threads} threads"
    return f"{found.device_name}{threads} {found.created_at}"


def describe(found: Calibration) -> dict[str, Any]:
    """Return what identifies a calibration and its age: device, threads, versions, date."""
    return {key: value for key, value in asdict(found).items() if key not in ("kernels", "dispatch_s")}
