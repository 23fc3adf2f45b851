"""What all tests share: no network, a plan cache of their own, and CUDA tests only where there is a GPU."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

import pytest

from qbench.quiet import quiet_libraries

os.environ["HF_HUB_OFFLINE"] = "1"
# Tests leave the user's plans and calibrations alone, and are not helped by them.
for name in ("QBENCH_CACHE_DIR", "QBENCH_CONFIG_DIR"):
    os.environ[name] = tempfile.mkdtemp(prefix="qbench-test-")
    atexit.register(shutil.rmtree, os.environ[name], ignore_errors=True)
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores; threads of OpenMP that wait for each other's would spin.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
quiet_libraries()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for name, why_not in (("cuda", _no_gpu), ("nullgpu", _no_null_gpu)):
        marked = [item for item in items if item.get_closest_marker(name)]
        reason = why_not() if marked else None
        for item in marked if reason is not None else ():
            item.add_marker(pytest.mark.skip(reason=reason))


def _no_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "no CUDA GPU"


def _no_null_gpu() -> str | None:
    from qbench.errors import QbenchError
    from qbench.nullgpu.launcher import preload_environment

    try:
        preload_environment()
    except QbenchError as error:
        return str(error)
    return None
