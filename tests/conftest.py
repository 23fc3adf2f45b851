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
    if not any(item.get_closest_marker("cuda") for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))
