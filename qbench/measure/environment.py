"""The machine and the code state behind a measurement."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
from pathlib import Path

from qbench.catalog.gpus import find_gpu
from qbench.measure.worktree import git
from qbench.nullgpu.environment import DRIVER_NAME
from qbench.records.parts import Environment
from qbench.records.software import software
from qbench.scenario.schema import RunDevice

SETTINGS = (
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_MODULE_LOADING",
    "OMP_NUM_THREADS",
)
"""Variables of the process that affect memory or speed; a request for a measurement may set these alone."""


def environment(device: RunDevice, gpu: str | None = None) -> Environment:
    """Return what a record says of its machine: device, versions, code, git state, settings that count.

    `gpu` is the card of the catalog that a null GPU is.
    """
    return {
        "device": device,
        **machine(device, gpu),
        **software(),
        **git_state(),
        "settings": {**process_settings()},
    }


def process_settings() -> dict[str, str]:
    """Return the variables of this process that affect memory or speed."""
    return {name: os.environ[name] for name in SETTINGS if name in os.environ}


@functools.cache
def machine(device: RunDevice, gpu: str | None = None) -> Environment:
    """Return name and size of the device and of the host; an unknown value is None."""
    host: Environment = {
        "platform": platform.platform(terse=True),
        "cpu_name": _cpu_name(),
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "host_memory_bytes": _host_memory_bytes(),
    }
    if device == "null":
        return {**_card(gpu), **host}
    if device == "cuda":
        from qbench.measure import nvml  # Plans ask this module too, and never for a GPU.

        return {**nvml.describe_device(), **host}
    return {"device_name": host["cpu_name"], **host}


def _card(name: str | None) -> Environment:
    """Return what `nvml.describe_device` does, of the card of the catalog that a null GPU is."""
    gpu = None if name is None else find_gpu(name)
    return {
        "device_name": None if gpu is None else gpu.name,
        "card": None if gpu is None else gpu.name,
        "device_id": None,
        "device_memory_bytes": None if gpu is None else gpu.memory_bytes,
        "driver": DRIVER_NAME,
    }


def torch_has_cuda() -> bool:
    """Say whether the installed torch was built for CUDA, without importing it; False where it is missing."""
    return _built_for("cuda", unknown=True)


def torch_has_rocm() -> bool:
    """Say the same of ROCm."""
    return _built_for("hip", unknown=False)


def _built_for(name: str, *, unknown: bool) -> bool:
    """Say whether torch was built for cuda or hip; `unknown` for a build that does not say."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return unknown  # A build of another shape: let torch itself say.
    built_for = re.search(rf"^{name}\b[^=\n]*=\s*(.+)$", text, re.MULTILINE)
    return unknown if built_for is None else built_for.group(1).strip() != "None"


def _cpu_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or None)


def _host_memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


@functools.cache
def git_state() -> Environment:
    """Return commit and dirty flag of the checkout that qbench runs from; None outside a checkout."""
    folder = Path(__file__).parents[2]
    commit = git(folder, "rev-parse", "HEAD") if (folder / ".git").exists() else None
    if commit is None:
        return {"git_commit": None, "git_dirty": None}
    changes = git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"git_commit": commit, "git_dirty": None if changes is None else bool(changes)}
