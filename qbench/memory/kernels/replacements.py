"""Which kernels a device would run, put in where meta tensors would take another path.

On meta, `scaled_dot_product_attention` and `dropout` fall back to their composite forms and bitsandbytes
shows only the output of its 4-bit matmul. The replacements here call the operators that the CPU or CUDA
would dispatch to, so that the saved and temporary tensors of the trace are theirs. `choices` has the rules.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torch.nn.utils.clip_grad as clip_grad
from bitsandbytes.backends.default.ops import _gemm_4bit_default_impl
from torch.utils._python_dispatch import _disable_current_modes

from qbench.memory.kernels.attention import (
    additive_mask,
    attention_on_scores,
    attention_scratch,
    cuda_attention,
)
from qbench.memory.kernels.autocast import lowered
from qbench.memory.kernels.choices import Backend, Card, fuses_4bit
from qbench.memory.kernels.experts import expert_kernels, experts_as_on
from qbench.memory.kernels.flash_attn import flash_attn_on
from qbench.memory.kernels.flash_splits import flash_forward
from qbench.memory.kernels.indexing import indexing_operators
from qbench.memory.kernels.int8 import int8_operators
from qbench.memory.kernels.scratch import operator_scratch

Decompositions = dict[Any, Callable[..., Any] | tuple[int, ...]]
"""What the ledger runs in an operator's place, or the order in which the operator allocates its outputs."""

aten: Any = torch.ops.aten
_fused_sdp_choice: Any = torch._fused_sdp_choice
_softmax = F.softmax

FLASH_CHOICE = 1
"""`SDPBackend.FLASH_ATTENTION` as returned by `torch._fused_sdp_choice`."""


def decompositions(kernels: str, on_meta: bool, card: Card | None = None) -> Decompositions:
    """Return the operators that the ledger replaces, by the device that is meant to run them.

    The 4-bit matmul is opened so that its inner allocations are seen, and on meta the backward of CUDA's
    attention and what its other operators hold; `card` is the one to run on.
    """
    card = card or Card()
    gemm = _gemm_4bit_default_impl if kernels == "cpu" else functools.partial(_gemm_4bit_cuda, card=card)
    replaced: Decompositions = {torch.ops.bitsandbytes.gemm_4bit.default: gemm}
    if kernels == "cuda" and on_meta:
        replaced |= attention_scratch(card) | flash_forward(card) | operator_scratch()
        replaced |= indexing_operators(card)
    if kernels == "cpu" and on_meta:
        replaced[aten.native_layer_norm.default] = _cpu_layer_norm
    if on_meta:
        replaced |= int8_operators(kernels, card) | expert_kernels(kernels, card)
    return replaced


def _cpu_layer_norm(
    input: torch.Tensor,
    shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> Any:
    """The CPU keeps mean and deviation in the dtype of input and weight, where meta has fp32 as CUDA does.

    Source: aten/src/ATen/native/layer_norm.cpp, `layer_norm_cpu`, whose statistics are fp32 for mixed dtypes.
    """
    if weight is not None and weight.dtype != input.dtype:
        return NotImplemented
    rows = input.shape[: input.dim() - len(shape)] + (1,) * len(shape)
    out = torch.empty_like(input, memory_format=torch.contiguous_format)
    return out, input.new_empty(rows), input.new_empty(rows)


def _gemm_4bit_cuda(
    A: torch.Tensor,
    B: torch.Tensor,
    shapeB: Sequence[int],
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    bias: torch.Tensor | None = None,
    absmax_8bit: torch.Tensor | None = None,
    absmax_code: torch.Tensor | None = None,
    absmax_offset: torch.Tensor | None = None,
    *,
    card: Card,
) -> torch.Tensor:
    """Allocate as bitsandbytes' CUDA kernel does: fused for few tokens, else dequantize and multiply.

    Shapes: A [..., in], packed weight B [out * in / 2, 1] in uint8, shapeB (out, in), result [..., out].
    A weight of n elements has n / blocksize absmax, in fp32, or in 8 bit under double quantization
    (`absmax_8bit` with a code book and an offset), which dequantizing restores to fp32 first. The fused
    kernel reads the packed weight tile by tile and allocates its result alone; the other path holds the
    whole weight [out, in] in A's dtype while it multiplies.

    Source: bitsandbytes 0.50 backends/cuda/ops.py, `gemm_4bit` and `_dequant_linear_fallback`.
    """
    tokens = A.numel() // A.shape[-1]
    if fuses_4bit(card, A.dtype, tokens, (shapeB[0], A.shape[-1]), blocksize):
        return torch.empty((*A.shape[:-1], shapeB[0]), dtype=A.dtype, device=A.device)
    # Local names there keep the restored absmax, before and after the offset, until the end of the call.
    held: tuple[torch.Tensor, ...] = ()
    if absmax_8bit is not None and absmax_offset is not None:
        restored = torch.empty_like(absmax_8bit, dtype=torch.float32)
        held = (restored, restored + absmax_offset)
    weight = torch.empty(tuple(shapeB), dtype=A.dtype, device=A.device)
    out = F.linear(A, weight, bias)
    del held
    return out


@contextlib.contextmanager
def kernels_of(device: str, card: Card | None = None) -> Iterator[set[Backend]]:
    """Run operators on meta as `device` (cpu or cuda) would; other tensors are not affected.

    `card` is the one to run on, for CUDA. Gives the set of CUDA's attention backends that were taken so far.
    """
    used: set[Backend] = set()
    card = card or Card()
    replaced: dict[str, Callable[..., torch.Tensor]] = {"scaled_dot_product_attention": _cpu_attention}
    if device == "cuda":
        attention = functools.partial(cuda_attention, card=card, used=used)
        replaced = {
            "scaled_dot_product_attention": attention,
            "dropout": _cuda_dropout,
            "softmax": _cuda_softmax,
        }
    original = {name: getattr(F, name) for name in replaced}
    for name, function in replaced.items():
        setattr(F, name, function)
    try:
        with (
            experts_as_on(device, card or Card()),
            _packages(device, card or Card(), used),
            _multi_tensor_clipping(),
        ):
            yield used
    finally:
        for name, function in original.items():
            setattr(F, name, function)


@contextlib.contextmanager
def _multi_tensor_clipping() -> Iterator[None]:
    """Let gradients on meta be clipped by multi-tensor operators, as they are on the CPU and on CUDA.

    Source: torch/utils/_foreach_utils.py, `_has_foreach_support`, which knows no meta tensors.
    """
    module: Any = clip_grad
    original = module._has_foreach_support
    module._has_foreach_support = lambda tensors, device: device.type == "meta" or original(tensors, device)
    try:
        yield
    finally:
        module._has_foreach_support = original


def _packages(device: str, card: Card, used: set[Backend]) -> contextlib.AbstractContextManager[None]:
    return flash_attn_on(card, used) if device == "cuda" else contextlib.nullcontext()


def _cpu_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Take the path that torch itself would choose for CPU tensors of these shapes and strides."""
    query, key, value, attn_mask = lowered(query, key, value, attn_mask)
    inputs = (query, key, value, attn_mask)
    if query.device.type != "meta":
        return attention_on_scores(*inputs, dropout_p, is_causal, scale, enable_gqa)
    stand_ins = [None if tensor is None else _like_on_cpu(tensor) for tensor in inputs]
    choice = _fused_sdp_choice(*stand_ins, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if choice != FLASH_CHOICE:
        return attention_on_scores(*inputs, dropout_p, is_causal, scale, enable_gqa)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = additive_mask(attn_mask, query.dtype)
    out: torch.Tensor = aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]
    return out


def _like_on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """Return a CPU tensor of the same shape, dtype and last stride that takes no memory."""
    with _disable_current_modes():  # It is no memory of the step, so the ledger must not see it.
        return torch.empty(tensor.shape[-1:], dtype=tensor.dtype).expand(tensor.shape)


def _cuda_dropout(
    x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    """CUDA's fused dropout keeps a bool mask (ATen/native/Dropout.cpp, `is_fused_kernel_acceptable`)."""
    if not training or p == 0:
        return x
    return torch.native_dropout(x, p, True)[0]


@functools.wraps(F.softmax)
def _cuda_softmax(
    input: torch.Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """CUDA reads fp16 and writes fp32 at once, without a copy (ATen/native/SoftMax.cpp, `softmax`)."""
    if input.is_meta and dim is not None and (input.dtype, dtype) == (torch.float16, torch.float32):
        out: torch.Tensor = aten._softmax(input, dim, True)
        return out
    return _softmax(input, dim, _stacklevel, dtype)
