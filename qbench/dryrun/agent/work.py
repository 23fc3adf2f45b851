"""The work of one update, operator by operator, with the costs that plans count.

Kernels of Triton, those of torch.compile included, are launched past PyTorch's dispatcher and not seen.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import sys
from typing import Any

_COSTS = os.path.join(os.path.dirname(__file__), "..", "..", "memory", "work", "op_costs.py")
"""qbench's own, which imports torch alone; the process need not have qbench."""
_NAME = "qbench_op_costs"


@functools.cache
def _costs() -> Any:
    spec = importlib.util.spec_from_file_location(_NAME, _COSTS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module  # Where its dataclasses look for their annotations.
    spec.loader.exec_module(module)
    return module


class WorkLog:
    """What ran, joined where it is equal."""

    def __init__(self) -> None:
        self.in_optimizer = False
        self._times: dict[tuple[Any, str], int] = {}

    def note(self, func: Any, args: Any, kwargs: Any, out: Any, node: Any) -> None:
        """Take down an operator; `node` is that of autograd's graph, None in the forward pass."""
        phase = "optimizer" if self.in_optimizer else "forward" if node is None else "backward"
        try:
            costs = _costs_of(func, args, kwargs, out)
        except Exception:  # An operator of some library with arguments of its own.
            return
        for cost in costs:
            self._times[cost, phase] = self._times.get((cost, phase), 0) + 1

    def rows(self) -> list[dict[str, Any]]:
        """Return {"cost", "phase", "times"} of all that ran."""
        return [
            {"cost": dataclasses.asdict(cost), "phase": phase, "times": times}
            for (cost, phase), times in self._times.items()
        ]


def _costs_of(func: Any, args: Any, kwargs: Any, out: Any) -> list[Any]:
    costs = _costs()
    if func._schema.name != "bitsandbytes::gemm_4bit":
        return [costs.op_cost(func, args, kwargs, out)]
    product = costs.product_of_4bit(args, kwargs, out)
    if product.shape[1] == 1:  # One token: a kernel of its own.
        return [product]
    weight = product.shape[2] * product.shape[3] * args[0].element_size()
    read = costs.tensor_bytes(args[0]) + weight
    plain = dataclasses.replace(product, op="linear", kind="matmul", read_bytes=read, layout="nt")
    return [*costs.dequantizations(args, kwargs), plain]
