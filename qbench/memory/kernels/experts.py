"""What stacked experts need: grouped and batched matrix products, histograms and a switched-off autocast.

transformers 5 sorts the tokens by expert and multiplies all of them in one grouped product, so that shapes
depend on the number of tokens and of experts per token, not on how tokens are routed.

`NATIVE` in a source is aten/src/ATen/native of torch.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from peft.utils.other import transpose
from transformers.integrations import moe

from qbench.memory.kernels.autocast import without_autocast
from qbench.memory.kernels.choices import Card, chosen_by_card
from qbench.units import round_up

aten: Any = torch.ops.aten

_FEW_ROWS = 128
"""Rows or columns of a group up to which a smaller tile serves (NATIVE/cuda/GroupMM.cu)."""

_DESCRIPTORS = {9: (512, 512), 10: (5_888, 5_376)}
"""Major capability -> bytes for each multiprocessor in which CUTLASS keeps descriptors of large and of small
tiles: GemmUniversalAdapter::get_workspace_size of the kernels in NATIVE/cuda/GroupMM.cu."""


def expert_kernels(kernels: str, card: Card) -> dict[Any, Callable[..., Any]]:
    """Return operators with no meta kernel, or one for bf16 only, and those that hold more on CUDA."""
    replaced: dict[Any, Callable[..., Any]] = {
        aten._grouped_mm.default: _grouped_mm,
        aten.histc.default: _histc,
    }
    if kernels == "cuda":
        replaced[aten._grouped_mm.default] = functools.partial(_grouped_mm_on_cuda, card=card)
        replaced[aten.bmm.default] = _bmm
        replaced[aten.baddbmm.default] = _baddbmm
    return replaced


def _grouped_mm(
    self: torch.Tensor,
    mat2: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Shapes as in torch/_meta_registrations.py, `_meta_grouped_mm_common`; rows are padded to 16 bytes.

    [tokens, k] x [experts, k, n] gives [tokens, n]; [m, tokens] x [tokens, n] one [m, n] for each expert.
    """
    if self.dim() == 2 and mat2.dim() == 2:
        assert offs is not None
        shape: tuple[int, ...] = (offs.shape[0], self.shape[0], mat2.shape[1])
    elif self.dim() == 2:
        shape = (self.shape[0], mat2.shape[2])
    elif mat2.dim() == 2:
        shape = (self.shape[1], mat2.shape[1])
    else:
        shape = (self.shape[0], self.shape[1], mat2.shape[2])
    dtype = out_dtype or self.dtype
    alignment = 16 // dtype.itemsize
    padded = -(-shape[-1] // alignment) * alignment
    strides = (padded, 1) if len(shape) == 2 else (shape[1] * padded, padded, 1)
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")


def _grouped_mm_on_cuda(
    self: torch.Tensor, mat2: torch.Tensor, *rest: Any, card: Card, **settings: Any
) -> torch.Tensor:
    """NATIVE/cuda/GroupedBlas.cpp, _grouped_mm_cuda: one kernel for all groups, or a product for each."""
    out = _grouped_mm(self, mat2, *rest, **settings)
    if self.dtype == mat2.dtype == torch.bfloat16:
        offs = rest[0] if rest else settings.get("offs")
        groups = next(each.shape[0] for each in (mat2, self, offs) if each is not None and each.dim() != 2)
        rows, columns = self.shape[-2], mat2.shape[-1]
        if self.dim() == 2 and mat2.dim() == 3:
            rows //= groups
        elif self.dim() == 3 and mat2.dim() == 2:
            columns //= groups
        _held = [
            self.new_empty((num_bytes,), dtype=torch.uint8)
            for num_bytes in grouped_bytes(groups, min(rows, columns), card)
        ]
    return out


@chosen_by_card
def grouped_bytes(groups: int, smaller: int, card: Card) -> tuple[int, ...]:
    """Return the bytes that the kernel for bf16 keeps of its groups and of its tiles.

    `smaller` is the lesser of a group's rows and columns. Only capabilities 9 and 10 have such a kernel.

    Source: NATIVE/cuda/GroupMM.cu, bf16bf16_grouped_gemm_impl_sm90_sm100: three pointers, strides and sizes
    for each group.
    """
    if card.capability[0] not in _DESCRIPTORS:
        return ()
    each = _DESCRIPTORS[card.capability[0]][smaller <= _FEW_ROWS]
    return round_up(groups, 2) * 3 * 8 + groups * (3 * 8 + 3 * 4), each * card.num_multiprocessors


def _bmm(self: torch.Tensor, mat2: torch.Tensor) -> Any:
    return _batched(self, mat2, self.dtype)


def _baddbmm(input: torch.Tensor, batch1: torch.Tensor, batch2: torch.Tensor, **settings: Any) -> Any:
    return _batched(batch1, batch2, input.dtype)


def _batched(first: torch.Tensor, second: torch.Tensor, dtype: torch.dtype) -> Any:
    """NATIVE/cuda/Blas.cpp, bmm_out_cuda_impl: what cuBLAS cannot read, neither by rows nor by columns, is
    copied. Of a result by rows cuBLAS computes the transpose, so that the second matrix comes first.
    """
    if _is_read_by_cublas(first) and _is_read_by_cublas(second):
        return NotImplemented
    out = torch.empty((*first.shape[:2], second.shape[2]), dtype=dtype, device=first.device)
    _copies = [
        matrix.clone(memory_format=torch.contiguous_format)
        for matrix in (second, first)
        if not _is_read_by_cublas(matrix)
    ]
    return out


def _is_read_by_cublas(batch: torch.Tensor) -> bool:
    """NATIVE/cuda/Blas.cpp, prepare_batch_matrix_for_cublas."""
    _, rows, columns = batch.shape
    _, by_row, by_column = batch.stride()
    if by_column == 1 and by_row >= max(1, columns):
        return True
    if by_row == 1 and by_column >= max(1, rows):
        return True
    return batch.is_contiguous() and by_row != 0 and by_column != 0


def _histc(self: torch.Tensor, bins: int = 100, min: float = 0, max: float = 0) -> torch.Tensor:
    return torch.empty(bins, dtype=self.dtype, device="meta")


@contextlib.contextmanager
def experts_as_on(device: str, card: Card) -> Iterator[None]:
    """Let experts and peft's adapters of them treat meta as `device` (cpu, or cuda with that card).

    transformers multiplies expert by expert below compute capability 8.0 (integrations/moe.py,
    `_can_use_grouped_mm`); what remains is peft's.

    They switch autocast off for the tensor's device, which torch refuses for meta (tuners/lora/layer.py,
    `_LoraFactorsProxy`), and on the CPU they multiply 16-bit factors in fp32 (`Linear.get_delta_weight`).
    """
    autocast: Any = torch.autocast
    delta_weight: Any = Linear.get_delta_weight
    can_group: Any = moe._can_use_grouped_mm
    torch.autocast = functools.partial(_autocast, autocast)  # type: ignore[misc, assignment]
    if device == "cuda":
        moe._can_use_grouped_mm = functools.partial(_groups_on, card, can_group)
    else:
        Linear.get_delta_weight = functools.partialmethod(_delta_weight_on_cpu, delta_weight)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        torch.autocast = autocast  # type: ignore[misc]
        Linear.get_delta_weight = delta_weight  # type: ignore[method-assign]
        moe._can_use_grouped_mm = can_group


def _groups_on(card: Card, original: Any, input: torch.Tensor, weight: torch.Tensor, offs: Any) -> bool:
    return bool(original(input, weight, offs)) and (not weight.is_meta or card.capability >= (8, 0))


def _autocast(
    original: Any, device_type: str, *args: Any, **kwargs: Any
) -> contextlib.AbstractContextManager[Any]:
    """Return `torch.autocast` of a device; on meta it is only ever asked to be off."""
    context: contextlib.AbstractContextManager[Any] = (
        without_autocast() if device_type == "meta" else original(device_type, *args, **kwargs)
    )
    return context


def _delta_weight_on_cpu(layer: Any, original: Any, adapter: str) -> torch.Tensor:
    first, second = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    if not second.is_meta or second.dtype not in (torch.float16, torch.bfloat16):
        value: torch.Tensor = original(layer, adapter)
        return value
    first, second_in_fp32 = first.float(), second.float()
    product = transpose(second_in_fp32 @ first, layer.fan_in_fan_out) * layer.scaling[adapter]
    return product.to(second.dtype)  # type: ignore[no-any-return]
