"""Where torch writes in place, but not under a dispatch mode such as the ledger.

While such a mode is on, every tensor counts as a subclass (ATen/TensorSubclassLikeUtils.h,
`isTensorSubclassLike`), and for subclasses torch makes a new tensor in these places:

- torch/csrc/autograd/input_buffer.cpp, `accumulate` and `can_accumulate_inplace`: of the gradients that meet
  at an operator, the one that came first takes the next one if nobody else holds it;
- torch/csrc/autograd/FunctionsManual.cpp, `index_backward`, `value_selecting_reduction_backward` and
  `gather_backward`: gradients are put into new zeros;
- ATen/native/transformers/attention.cpp, `_scaled_dot_product_attention_math`: scores take the mask.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch

_HELD_BY_DISPATCH = 4
"""References to a tensor that the engine alone holds, while a dispatch mode looks at it.

The engine's buffer, the operator's stack, its argument and the Python object.
"""

_STORAGE_HELD = 2
"""References to a storage of one tensor while it is looked at: that tensor's and the look's."""

_WRAPPERS = frozenset(
    ("__torch_dispatch__", "_run_counted", "_run_with_values", "__torch_function__", "inner", "_fn")
)
"""Functions between the ledger and what called the operator: its own, the autocast of meta, and torch's."""

_ENGINE = "_engine_run_backward"
"""Function of torch/autograd/graph.py that runs the engine: what it calls, no Python code called."""

_ATTENTION = "attention_on_scores"
"""Name of the function that alone calls torch's attention where it works on scores."""


_PUTS = {
    torch.ops.aten.index_put.default: torch.ops.aten.index_put_.default,
    torch.ops.aten.scatter.src: torch.ops.aten.scatter_.src,
    torch.ops.aten.scatter_add.default: torch.ops.aten.scatter_add_.default,
}
"""Operators by which the engine puts gradients into zeros -> those that do so in place."""


def put_in_place(func: Any, args: Any) -> Any:
    """Return what torch would run where the engine puts gradients into new zeros, else `func`."""
    found = _PUTS.get(func)
    if found is None or torch.is_grad_enabled() or _caller(sys._getframe(1)) != _ENGINE:
        return func
    # Without accumulation it is the gradient of `index_put` itself, which is a new tensor.
    return func if func is torch.ops.aten.index_put.default and not (args[3:] and args[3]) else found


def adds_in_place(first: Any, second: Any) -> bool:
    """Say whether `first + second`, seen in a dispatch mode, is a sum that torch would form in `first`."""
    if not isinstance(second, torch.Tensor):
        return False
    caller = _caller(sys._getframe(1))
    if caller == _ATTENTION:
        return True
    return (
        caller == _ENGINE
        and not torch.is_grad_enabled()
        and first._use_count() <= _HELD_BY_DISPATCH
        and torch._C._storage_Use_Count(first.untyped_storage()._cdata) <= _STORAGE_HELD
        and _is_dense(first)
    )


def _caller(frame: FrameType | None) -> str:
    """Return the name of the Python function that called into torch; the operator itself may be far below."""
    while frame is not None and frame.f_code.co_name in _WRAPPERS:
        frame = frame.f_back
    return "" if frame is None else frame.f_code.co_name


def _is_dense(tensor: torch.Tensor) -> bool:
    """Say whether a tensor fills its memory without gaps, in whatever order of dimensions."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True
