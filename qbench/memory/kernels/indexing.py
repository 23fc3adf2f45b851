"""Sorting, selecting and scattering on CUDA, on meta tensors: a mask is taken to be all true.

Of masks, meta kernels refuse these operators, whose outputs depend on data. The batches here have a label
for each token, so that a mask of labels selects all. `NATIVE` in a source is aten/src/ATen/native.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from qbench.memory.kernels.choices import Capability, Card, chosen_by_card
from qbench.memory.kernels.scratch import scan_scratch_bytes
from qbench.units import round_up

aten: Any = torch.ops.aten

_DENSE = torch.contiguous_format

_ALIGNMENT, _SLACK = 256, 255
"""cub/util_device.cuh, `AliasTemporaries`: how parts of a temporary are aligned, and the room for that."""

_REDUCE_TILE, _REDUCE_THREADS, _SUBSCRIPTION = 4096, 256, 5
"""cub's reduction: elements that one block takes alone, its threads, and how many times a card is filled.

Source: cub/device/dispatch/dispatch_reduce.cuh, `InvokePasses`, and `CUB_SUBSCRIPTION_FACTOR`.
"""

_SELECT_BYTES = 1023
"""cub's selection keeps the states of up to 32 tiles and 32 more, 8 B each; 512 B, 256 B, and the slack."""

_SORT_ALONE = 2304
"""Elements that one block of cub's radix sort takes alone: 9 for each of 256 threads."""

_SMALL_SORT = 4096
"""Elements up to which one block sorts in place (NATIVE/cuda/Sort.cu, should_use_small_sort)."""

_RADIX_BITS = 8


def indexing_operators(card: Card) -> dict[Any, Callable[..., Any]]:
    """Return the operators that sort, select or scatter, as a card allocates in them."""
    return {
        aten.index.Tensor: functools.partial(_index, card=card),
        aten.index_put_.default: functools.partial(_index_put, card=card),
        aten.sort.default: functools.partial(_sort, card=card),
        aten.masked_scatter.default: _masked_scatter,
        aten.masked_scatter_backward.default: functools.partial(_masked_scatter_backward, card=card),
    }


def _index(self: torch.Tensor, indices: Sequence[torch.Tensor | None], *, card: Card) -> Any:
    """NATIVE/TensorAdvancedIndexing.cpp, `index`; NotImplemented where nothing but the output is made."""
    mask = _mask(indices)
    if mask is None:
        return _index_by_several(self, indices)
    _positions = _nonzero(mask, card)
    return self.new_empty((mask.numel(), *self.shape[mask.dim() :]))


def _index_by_several(self: torch.Tensor, indices: Sequence[torch.Tensor | None]) -> Any:
    """NATIVE/TensorAdvancedIndexing.cpp, `AdvancedIndex`: on CUDA all indices get the same strides."""
    given = [index for index in indices if index is not None]
    shape = torch.broadcast_shapes(*(index.shape for index in given))
    expanded = [index.expand(shape) for index in given]
    if all(index.stride() == expanded[0].stride() for index in expanded):
        return NotImplemented
    spread = [index for index in expanded if not index.is_contiguous()]
    _copies = [torch.empty_like(index, memory_format=_DENSE) for index in spread]
    with _disable_current_modes():
        found = aten.index.Tensor(self, indices).shape
    return self.new_empty(found)


def _index_put(
    self: torch.Tensor,
    indices: Sequence[torch.Tensor | None],
    values: torch.Tensor,
    accumulate: bool = False,
    *,
    card: Card,
) -> Any:
    """NATIVE/cuda/Indexing.cu, index_put_with_sort_kernel: rows that meet are added up in order."""
    if not accumulate or not self.is_contiguous():
        return NotImplemented
    mask, first = _mask(indices), next(place for place, index in enumerate(indices) if index is not None)
    if mask is not None:
        given = list(_nonzero(mask, card))
    else:
        given = list(torch.broadcast_tensors(*(index for index in indices if index is not None)))
    if mask is None and any(index is None for index in indices[first : first + len(given)]):
        return NotImplemented  # They would have to be brought together first.
    linear = _linear_index(self, first, given)
    count, rows = linear.numel(), self.shape[: first + len(given)].numel()
    del given
    _contiguous = values.contiguous()
    held = [_longs(self, count) for _ in range(3)]
    _temporary = _bytes(self, sort_scratch_bytes(count, (rows - 1).bit_length(), card))
    del held
    return self


def _linear_index(self: torch.Tensor, first: int, indices: Sequence[torch.Tensor]) -> torch.Tensor:
    """NATIVE/cuda/Indexing.cu, computeLinearIndex: one number for a place along all indexed dimensions."""
    linear: torch.Tensor | None = None
    for dim, index in enumerate(indices, first):
        scaled = torch.remainder(index, self.shape[dim]) * self.stride(dim)
        linear = scaled if linear is None else linear.add_(scaled)
        del scaled
    assert linear is not None
    return linear


def _sort(self: torch.Tensor, dim: int = -1, descending: bool = False, *, card: Card) -> Any:
    """NATIVE/cuda/Sort.cpp, sort_cuda_kernel; of long rows only a single one of integers, as experts sort."""
    count = self.shape[dim] if self.dim() else 0
    if not count or (count > _SMALL_SORT and (self.dim() > 1 or self.dtype != torch.int64)):
        return NotImplemented
    values, indices = torch.empty_like(self), torch.empty_like(self, dtype=torch.int64)
    _positions = _longs(self, count)
    if count > _SMALL_SORT:
        _temporary = _bytes(self, sort_scratch_bytes(count, 64, card))
        del _temporary
    return values, indices


def _masked_scatter(self: torch.Tensor, mask: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """NATIVE/cuda/IndexKernel.cpp, masked_scatter__cuda: sums of the mask before each element."""
    out = torch.empty_like(self)
    _sums = _longs(mask, mask.numel())
    _temporary = _bytes(mask, scan_scratch_bytes(mask.numel(), 8))
    return out


def _masked_scatter_backward(
    grad_output: torch.Tensor, mask: torch.Tensor, sizes: Sequence[int], *, card: Card
) -> torch.Tensor:
    """NATIVE/TensorAdvancedIndexing.cpp, masked_scatter_backward: what the mask selects of the gradient."""
    _positions = _nonzero(mask, card)
    return grad_output.new_empty(tuple(sizes))


def _mask(indices: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    first = indices[0]
    return first if first is not None and first.dtype == torch.bool else None


def _nonzero(mask: torch.Tensor, card: Card) -> torch.Tensor:
    """NATIVE/cuda/Nonzero.cu, nonzero_cuda_out_impl: count what is true, then write its positions."""
    counted = mask.new_empty((1,), dtype=torch.int32)
    temporary = _bytes(mask, reduce_scratch_bytes(mask.numel(), card))
    del temporary
    positions = mask.new_empty((mask.dim(), mask.numel()), dtype=torch.int64)
    temporary = _bytes(mask, _SELECT_BYTES)
    del temporary, counted
    return positions


@chosen_by_card
def reduce_scratch_bytes(count: int, card: Card) -> int:
    """Return the bytes in which cub sums up so many flags: one 32-bit sum for each block on the card."""
    if count <= _REDUCE_TILE:
        return 1
    blocks = card.threads_per_multiprocessor // _REDUCE_THREADS * card.num_multiprocessors * _SUBSCRIPTION
    return round_up(4 * blocks, _ALIGNMENT) + _SLACK


@chosen_by_card
def sort_scratch_bytes(count: int, bits: int, card: Card) -> int:
    """Return the bytes that cub's radix sort takes for so many pairs of 64-bit numbers, by their lowest bits.

    Source: cub/device/dispatch/dispatch_radix_sort.cuh, `InvokeOnesweep`: bins of each pass, states of the
    blocks, a second copy of keys and values unless one pass is enough, and counters.
    """
    if count <= _SORT_ALONE:
        return 1
    passes = max(1, -(-bits // _RADIX_BITS))
    digits = 1 << _RADIX_BITS
    blocks = -(-count // _sort_tile(card.capability))
    copies = 2 * round_up(8 * count, _ALIGNMENT) if passes > 1 else 0
    return copies + 8 * digits * passes + 4 * digits * blocks + _ALIGNMENT + _SLACK


def _sort_tile(capability: Capability) -> int:
    """Return the pairs that a block sorts (cub/device/dispatch/tuning/tuning_radix_sort.cuh)."""
    if capability < (8, 0):
        return 256 * 11
    return 384 * 10 if capability < (9, 0) else 384 * 12


def _longs(like: torch.Tensor, count: int) -> torch.Tensor:
    return like.new_empty((count,), dtype=torch.int64)


def _bytes(like: torch.Tensor, count: int) -> torch.Tensor:
    return like.new_empty((count,), dtype=torch.uint8)
