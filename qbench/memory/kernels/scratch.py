"""What CUDA's own operators hold while they run, beyond their outputs, which is all that meta kernels show.

Each replacement allocates in the order of the operator on CUDA. `NATIVE` in a source is aten/src/ATen/native.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from qbench.memory.kernels.choices import Card, chosen_by_card
from qbench.units import round_up

aten: Any = torch.ops.aten

_CHUNK_ELEMENTS = 65_536
"""Elements that a block of a multi-tensor kernel takes (NATIVE/cuda/MultiTensorApply.cuh, kChunkSize)."""

_REDUCE_THREADS, _LEAST_PER_THREAD, _MOST_PER_THREAD = 512, 16, 256
"""NATIVE/cuda/Reduce.cuh: threads of a block, and the elements that each takes at least and at most."""

_SOLVED_ONE_BY_ONE, _LARGE_MATRIX = 8, 64
"""So few matrices of so many rows are solved one by one (NATIVE/cuda/linalg/BatchLinearAlgebra.cpp)."""

_SCAN_TILES = {8: 128 * 7, 4: 128 * 15}
"""Bytes of an element -> elements that a block of cub's scan takes: 15 of four bytes for each of 128 threads.

Source: cub/device/dispatch/tuning/tuning_scan.cuh, default policy, and `Nominal4BItemsToItems`.
"""


def operator_scratch() -> dict[Any, Callable[..., Any] | tuple[int, ...]]:
    """Return the operators that hold more on CUDA than on meta, as CUDA allocates in them.

    In place of a function there may be the order in which CUDA allocates an operator's outputs.
    """
    return {
        aten.native_dropout.default: (1, 0),  # NATIVE/cuda/Dropout.cu, dropout_cuda: the mask comes first
        aten._softmax_backward_data.default: _softmax_backward,
        aten._safe_softmax.default: _safe_softmax,
        aten.cumsum.default: _cumsum,
        aten.sum.default: _sum,
        aten._foreach_norm.Scalar: _foreach_norm,
        aten.linalg_solve_triangular.default: _solve_triangular,
        aten.convolution.default: _convolution,
    }


def _softmax_backward(
    grad_output: torch.Tensor, output: torch.Tensor, dim: int, input_dtype: torch.dtype
) -> torch.Tensor:
    """NATIVE/cuda/SoftMax.cu, softmax_backward_cuda_out: the product of gradient and output is a tensor."""
    grad_input = torch.empty_like(grad_output, dtype=input_dtype)
    _product = torch.empty_like(grad_output)
    return grad_input


def _safe_softmax(self: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """NATIVE/SoftMax.cpp, _safe_softmax: rows that are masked as a whole are looked for among the scores."""
    out = torch.softmax(self, dim, dtype=dtype)
    masked = torch.empty_like(self, dtype=torch.bool)
    rows = masked.all(dim, keepdim=True)
    _zero = torch.empty((), dtype=out.dtype, device=out.device)
    del rows, masked
    return out


def _cumsum(self: torch.Tensor, dim: int, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """NATIVE/ReduceOps.cpp, impl_func_cum_ops, and NATIVE/cuda/ScanUtils.cuh, scan_dim."""
    dtype = dtype or (self.dtype if self.is_floating_point() else torch.int64)
    out = torch.empty_like(self, dtype=dtype)
    source = self.to(dtype)
    if source.dim() and source.numel() == source.shape[dim]:
        _state = source.new_empty((scan_scratch_bytes(source.numel(), dtype.itemsize),), dtype=torch.uint8)
    return out


def scan_scratch_bytes(count: int, itemsize: int) -> int:
    """Return the bytes that cub's scan over so many elements keeps about its tiles.

    Source: cub/agent/single_pass_scan_operators.cuh, `ScanTileState::AllocationSize` (a status and a value
    for each tile and 32 more), and cub/util_device.cuh, `AliasTemporaries` (parts aligned to 256 B).
    """
    tiles = -(-count // _SCAN_TILES.get(itemsize, _SCAN_TILES[8]))
    return round_up((tiles + 32) * 2 * itemsize, 256) + 256 + 255


def _sum(self: torch.Tensor, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """NATIVE/ReduceOpsUtils.h, make_reduction: what is no float is summed up in int64, after a copy."""
    dtype = dtype or (self.dtype if self.is_floating_point() else torch.int64)
    out = torch.empty((), dtype=dtype, device=self.device)
    if not self.is_floating_point():
        _copy = self.to(dtype)
    return out


def _foreach_norm(
    self: list[torch.Tensor], ord: float = 2, dtype: torch.dtype | None = None
) -> list[torch.Tensor]:
    """NATIVE/cuda/ForeachReduceOp.cu, foreach_tensor_norm_cuda: an fp32 partial result for each chunk."""
    chunks = max(-(-tensor.numel() // _CHUNK_ELEMENTS) for tensor in self)
    partial = self[0].new_empty((len(self) * chunks,), dtype=torch.float32)
    norms = [tensor.new_empty((), dtype=dtype) for tensor in self]
    del partial
    return norms


def _solve_triangular(self: torch.Tensor, B: torch.Tensor, **settings: Any) -> torch.Tensor:
    """NATIVE/cuda/linalg/BatchLinearAlgebra.cpp, triangular_solve_kernel: pointers to batched matrices."""
    shape = torch.broadcast_shapes(self.shape[:-2], B.shape[:-2])
    out = torch.empty((*shape, *B.shape[-2:]), dtype=B.dtype, device=B.device)
    count = shape.numel()
    if count > _SOLVED_ONE_BY_ONE or self.shape[-1] < _LARGE_MATRIX:
        _pointers = [out.new_empty((count,), dtype=torch.int64) for _ in range(2)]
    return out


def _convolution(self: torch.Tensor, weight: torch.Tensor, *rest: Any) -> Any:
    """NATIVE/Convolution.cpp, _convolution: the kernels read and write memory without gaps."""
    if self.is_contiguous() or self.dim() != 3:
        return NotImplemented
    _dense = self.contiguous()
    return torch.ops.aten.convolution.default(_dense, weight, *rest)


@chosen_by_card
def reduction_bytes(count: int, itemsize: int, card: Card) -> tuple[int, ...]:
    """Return the bytes of partial results and of counters in a reduction of so many elements to one.

    They are rounded up to blocks, so that most cards give the same.

    Source: NATIVE/cuda/Reduce.cuh, setReduceConfig: blocks of 512 threads; where each thread would have 256
    elements or more, several blocks share the work, as many as fit on the card or as have 16 elements for
    each thread, but enough that none has more than 256.
    """
    per_thread = -(-count // _REDUCE_THREADS)
    if per_thread < _MOST_PER_THREAD:
        return ()
    on_card = card.num_multiprocessors * (card.threads_per_multiprocessor // _REDUCE_THREADS)
    blocks = max(min(on_card, -(-per_thread // _LEAST_PER_THREAD)), -(-per_thread // _MOST_PER_THREAD))
    return round_up(blocks * itemsize, 512), 512


@chosen_by_card
def multiprocessors_of(card: Card) -> int:
    """Return the multiprocessors of a card, for kernels that keep one row of results for each."""
    return card.num_multiprocessors
