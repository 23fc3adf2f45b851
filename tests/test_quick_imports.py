"""A plan loads less than the libraries import by themselves; they stay what they are for all that follows."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

HEAVY = {
    "torch._inductor.lowering",
    "torch._inductor.select_algorithm",
    "scipy",
    "triton",
    "trl",
    "datasets",
    "pandas",
}


def ran(code: str) -> Any:
    """Return what a fresh interpreter prints last, as JSON."""
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


def test_a_plan_loads_no_compiler_and_no_trainer():
    modules = ran(
        "import json, sys\nfrom qbench.cli.main import main\n"
        "main(['plan', 'gpt2', '--precision', 'nf4-dq', '--seq', '64', '--gpu', 'RTX 4090', '--no-cache'])\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    assert "bitsandbytes" in modules
    assert HEAVY & set(modules) == set()
    # 3,060 with the versions of constraints.txt; bitsandbytes compiling on import would add 540, scipy 320.
    assert len(modules) < 3200


COMPILED = """
import gc, json
import torch
compile_now = torch.compile
calls = []
torch.compile = lambda model=None, **settings: calls.append(model.__name__) or model
as_before = torch.compile
from qbench.quick_imports import quick_imports
with quick_imports():
    import bitsandbytes.functional as F
on_import, restored = list(calls), torch.compile is as_before
weight = torch.arange(-2048.0, 2048.0).reshape(64, 64)
packed, state = F.quantize_blockwise(weight)
from bitsandbytes.backends.default.ops import _dequantize_blockwise_compute as dequantize
values = (packed.reshape(-1), state.absmax, state.code, 4096, torch.float32)
once, twice = dequantize(*values), dequantize(*values)
close = torch.allclose(once.reshape(64, 64), weight, atol=40)
with quick_imports():
    left_alone = torch.compile is as_before and gc.isenabled()
right = close and torch.equal(once, twice)
print(json.dumps([on_import, calls, restored, gc.isenabled(), right, left_alone]))
"""


def test_functions_are_compiled_once_when_they_are_called():
    on_import, calls, restored, collects, right, left_alone = ran(COMPILED)
    assert on_import == []
    assert calls == ["_dequantize_blockwise_compute"]
    assert restored
    assert collects
    assert right
    # What is loaded already is not imported again, so nothing is replaced.
    assert left_alone


MATCHED = """
import json, sys
from qbench.quick_imports import quick_imports
with quick_imports():
    from transformers.loss import loss_for_object_detection as loss
found = "scipy" in sys.modules
rows, columns = loss.linear_sum_assignment([[4.0, 1.0], [2.0, 3.0]])
import scipy.optimize
print(json.dumps([found, columns.tolist(), hasattr(scipy.optimize, "minimize")]))
"""


def test_scipy_is_imported_when_it_is_called():
    pytest.importorskip("scipy")
    # 1 + 2 is less than 4 + 3: the first row takes the second column.
    assert ran(MATCHED) == [False, [1, 0], True]
