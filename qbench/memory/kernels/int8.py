"""bitsandbytes' int8 operators on CUDA, on meta tensors: outliers are taken not to be there.

What they return depends on outliers in the data, so that they have no output shapes on meta. Followed is
bitsandbytes 0.50, backends/cuda/ops.py and backends/default/ops.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from qbench.memory.kernels.choices import Card
from qbench.memory.kernels.scratch import reduction_bytes


def int8_operators(kernels: str, card: Card) -> dict[Any, Callable[..., Any]]:
    """Return the int8 operators as a device (cpu or cuda) allocates in them."""
    operators = torch.ops.bitsandbytes
    if kernels != "cuda":
        return {
            operators.int8_vectorwise_quant.default: _quantized,
            operators.int8_mixed_scaled_mm.default: functools.partial(_multiplied, on_cuda=False),
        }
    return {
        operators.int8_vectorwise_quant.default: functools.partial(_quantized_on_cuda, card=card),
        operators.int8_mixed_scaled_mm.default: functools.partial(_multiplied, on_cuda=True),
    }


_MOST_DIMS = 3
"""Of an input (backends/cuda/ops.py, `_int8_linear_matmul_impl`)."""

Quantized = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def _quantized(A: torch.Tensor, threshold: float = 0.0) -> Quantized:
    outlier_cols = torch.empty(0, device=A.device, dtype=torch.int64) if threshold > 0 else None
    packed = torch.empty(A.shape, device=A.device, dtype=torch.int8)
    return packed, _row_stats(A), outlier_cols


def _quantized_on_cuda(A: torch.Tensor, threshold: float = 0.0, *, card: Card) -> Quantized:
    """`int8_vectorwise_quant`: outliers are looked for in a mask, which lives until the end of the call."""
    row_stats = _row_stats(A)
    packed = torch.empty(A.shape, device=A.device, dtype=torch.int8)
    if threshold <= 0:
        return packed, row_stats, None
    magnitudes = torch.empty_like(A)
    _outliers = torch.empty_like(A, dtype=torch.bool)
    del magnitudes
    found = [_bytes(A, 1), *(_bytes(A, size) for size in reduction_bytes(A.numel(), 1, card))]
    del found
    outlier_cols = torch.empty(0, device=A.device, dtype=torch.int64)
    if A.numel() > A.shape[-1]:
        _zero = _bytes(A, 1)
    return packed, row_stats, outlier_cols


def _row_stats(A: torch.Tensor) -> torch.Tensor:
    return torch.empty(A.numel() // A.shape[-1], device=A.device, dtype=torch.float32)


def _multiplied(
    A: torch.Tensor, CA: torch.Tensor, CB: torch.Tensor, *rest: Any, on_cuda: bool, **settings: Any
) -> tuple[torch.Tensor, None]:
    """On CUDA `int8_linear_matmul` gives int32, `int8_mm_dequant` fp16, cast to the input's dtype."""
    shape = (*CA.shape[:-1], CB.shape[0])
    if not on_cuda:
        return torch.empty(shape, device=A.device, dtype=A.dtype), None
    if CA.dim() > _MOST_DIMS:
        raise ValueError("bitsandbytes' int8 products on CUDA take matrices of two or three dimensions only")
    product = torch.empty(shape, device=A.device, dtype=torch.int32)
    out = torch.empty(shape, device=A.device, dtype=torch.float16)
    if A.dtype != torch.float16:
        in_fp16, out = out, torch.empty(shape, device=A.device, dtype=A.dtype)
        del in_fp16
    del product
    return out, None


def _bytes(like: torch.Tensor, count: int) -> torch.Tensor:
    return like.new_empty((count,), dtype=torch.uint8)
