"""What the fork server loads: all that is heavy, and on a machine with a GPU nothing that starts CUDA."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import pytest

CODE = """
import json, sys
from qbench.measure import nvml
nvml.cuda_present = lambda: {gpu}
import torch.cuda
calls = []
for name in ("init", "_lazy_init", "is_available", "device_count", "get_device_capability", "current_device"):
    setattr(torch.cuda, name, lambda *args, name=name, **kwargs: calls.append(name) or 0)
import qbench.measure.preload
print(json.dumps({{"modules": sorted(sys.modules), "calls": calls}}))
"""


@functools.cache
def preloaded(gpu: bool) -> dict[str, list[str]]:
    """Return the modules that the fork server loads, and the functions of CUDA that were called for it."""
    child = subprocess.run(
        [sys.executable, "-c", CODE.format(gpu=gpu)], capture_output=True, text=True, timeout=120, check=False
    )
    assert child.returncode == 0, child.stderr
    found: dict[str, list[str]] = json.loads(child.stdout)
    return found


@pytest.mark.parametrize("gpu", [False, True])
def test_the_heavy_libraries_are_loaded(gpu: bool):
    assert {"torch", "transformers", "accelerate", "torch._inductor"} <= set(preloaded(gpu)["modules"])


def test_without_a_gpu_all_that_a_point_needs_is_loaded():
    modules = set(preloaded(False)["modules"])
    assert {"peft", "bitsandbytes", "qbench.measure.cpu", "qbench.step.training_step"} <= modules


def test_beside_a_gpu_nothing_asks_cuda():
    found = preloaded(True)
    assert found["calls"] == []
    assert not {"bitsandbytes", "peft"} & set(found["modules"])
