"""What the NVIDIA driver says, through NVML. A probe that cannot answer gives None, never a number."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pynvml


@contextlib.contextmanager
def _device() -> Iterator[Any]:
    """Yield the NVML handle of the first visible device, or None where there is no driver or device."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield _handle()
    finally:
        pynvml.nvmlShutdown()


def _handle() -> Any:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if chosen in ("", "-1", "NoDevFiles"):
        return None
    try:
        if chosen.startswith(("GPU-", "MIG-")):
            return pynvml.nvmlDeviceGetHandleByUUID(chosen)
        return pynvml.nvmlDeviceGetHandleByIndex(int(chosen))
    except (pynvml.NVMLError, ValueError):
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def cuda_present() -> bool:
    """Say whether the driver shows a device; CUDA itself is not initialised."""
    with _device() as handle:
        return handle is not None


def describe_device() -> dict[str, Any]:
    """Return device_name, device_uuid, device_memory_bytes and driver; None where the driver is silent."""
    unknown = dict.fromkeys(("device_name", "device_uuid", "device_memory_bytes", "driver"))
    with _device() as handle:
        if handle is None:
            return unknown
        try:
            return {
                "device_name": _text(pynvml.nvmlDeviceGetName(handle)),
                "device_uuid": _text(pynvml.nvmlDeviceGetUUID(handle)),
                "device_memory_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                "driver": _text(pynvml.nvmlSystemGetDriverVersion()),
            }
        except pynvml.NVMLError:
            return unknown


def device_used_bytes() -> int | None:
    """Return the bytes in use on the device, by all processes, as nvidia-smi shows them."""
    with _device() as handle:
        if handle is None:
            return None
        try:
            return int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
        except pynvml.NVMLError:
            return None


def foreign_processes(own_is_listed: bool = False) -> list[int] | None:
    """Return the process ids, other than this one, that compute on the device; None when not to be had.

    In a container NVML may show the host's process ids. Where this process must be among them and is not,
    none of them can be told apart from it, so that the answer is None.
    """
    with _device() as handle:
        if handle is None:
            return None
        try:
            running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except pynvml.NVMLError:
            return None
    listed = [int(process.pid) for process in running]
    if own_is_listed and os.getpid() not in listed:
        return None
    return [pid for pid in listed if pid != os.getpid()]
