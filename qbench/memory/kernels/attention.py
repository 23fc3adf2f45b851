"""Attention on CUDA, on meta tensors: the kernel that torch would take, and what its backward holds unseen.

The meta kernels of torch's fused backward operators return their outputs and nothing else. The replacements
here also allocate what the kernels use meanwhile: accumulators in fp32, and gradients of grouped heads before
they are summed. `NATIVE` in a source is aten/src/ATen/native/transformers/cuda.

Shapes, in the letters of the sources:

    B batch · H heads of the query · G heads of key and value (G < H where they are grouped)
    M rows: queries · N columns: keys · K head size of query and key · Kv head size of value
    query [B, H, M, K] · key [B, G, N, K] · value [B, G, N, Kv] · out [B, H, M, Kv] · logsumexp [B, H, M]

Fused kernels never hold the scores [B, H, M, N]; math attention does, in several copies, which is what makes
the choice of kernel worth gigabytes. What fused backward needs beyond its three gradients grows with M, not
with M x N: the row sums of grad_out x out (`delta`, [B, H, M]), the query's gradient summed over tiles of
columns in fp32, and for grouped heads the gradients of all H heads of key and value before they are reduced
to G. The kernels read and write the heads of a token together, [B, M, H, K] (`_by_token`), so a tensor laid
out as [B, H, M, K] is copied first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import _disable_current_modes

from qbench.memory.kernels.autocast import lowered
from qbench.memory.kernels.choices import (
    HALF,
    HOLDS_128_ROWS,
    AttentionCall,
    Backend,
    Card,
    attention_backend,
    chosen_by_card,
)
from qbench.units import round_up

aten: Any = torch.ops.aten
_IN_REGISTERS = 128
"""Largest head of which memory-efficient attention keeps the result in registers (kKeepOutputInRF)."""

_sdpa = F.scaled_dot_product_attention

Tensors = tuple[torch.Tensor | None, ...]


def cuda_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    card: Card,
    used: set[Backend],
) -> torch.Tensor:
    """Run attention as CUDA would on a card, and add the backend to `used`; real tensors are left alone."""
    query, key, value, attn_mask = lowered(query, key, value, attn_mask)
    if query.device.type != "meta":
        return attention_on_scores(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    call = _call(query, key, value, attn_mask, dropout_p, is_causal, enable_gqa)
    backend = attention_backend(call, card)
    used.add(backend)
    if backend == "math":
        return attention_on_scores(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    if backend == "flash":
        return flash_attention(query, key, value, dropout_p, is_causal, scale)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = additive_mask(attn_mask, query.dtype)
    if backend == "cudnn":
        out: torch.Tensor = aten._scaled_dot_product_cudnn_attention(
            query, key, value, attn_mask, call.requires_grad, dropout_p, is_causal, False, scale=scale
        )[0]
        return out
    mask = None if attn_mask is None else _aligned(attn_mask).expand(*query.shape[:3], key.shape[2])
    out = aten._scaled_dot_product_efficient_attention(
        query, key, value, mask, call.requires_grad, dropout_p, is_causal, scale=scale
    )[0]
    return out


def attention_on_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> torch.Tensor:
    """Run torch's own attention; `additions` knows calls of this function, where scores take the mask."""
    return _sdpa(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)


def _call(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
    enable_gqa: bool,
) -> AttentionCall:
    states = (query, key, value)
    strided = (*states, mask) if mask is not None else states
    return AttentionCall(
        dtype=query.dtype,
        heads=(query.shape[-3], key.shape[-3], value.shape[-3]),
        head_dims=(query.shape[-1], key.shape[-1], value.shape[-1]),
        lengths=(query.shape[-2], key.shape[-2]),
        has_mask=mask is not None,
        is_causal=is_causal,
        enable_gqa=enable_gqa,
        dropout_p=dropout_p,
        requires_grad=torch.is_grad_enabled() and any(state.requires_grad for state in states),
        contiguous_heads=all(tensor.stride(-1) == 1 for tensor in strided),
    )


def flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """Run the flash kernel; heads are padded to a multiple of 8 (ATen/native/transformers/attention.cpp)."""
    head_dim = query.shape[-1]
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    states = (query, key, value)
    if head_dim % 8:
        states = tuple(F.pad(state, (0, 8 - head_dim % 8)) for state in states)  # type: ignore[assignment]
    out: torch.Tensor = aten._scaled_dot_product_flash_attention(
        *states, dropout_p, is_causal, False, scale=scale
    )[0]
    return out[..., :head_dim] if head_dim % 8 else out


def additive_mask(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Allocate as `convert_boolean_attn_mask` does (ATen/native/transformers/attention.cpp)."""
    keep, drop = (torch.scalar_tensor(value, dtype=dtype, device=mask.device) for value in (0.0, -math.inf))
    return torch.where(mask, keep, drop)


def _aligned(mask: torch.Tensor) -> torch.Tensor:
    """Pad rows to a multiple of 8 as `preprocess_mask` does (ATen/native/transformers/attention.cpp)."""
    if all(stride % 8 == 0 for stride in mask.stride()[:-1]):
        return mask
    length = mask.shape[-1]
    return F.pad(mask, (0, 8 - length % 8))[..., :length]


def attention_scratch(card: Card) -> dict[Any, Callable[..., Tensors] | tuple[int, ...]]:
    """Return the operators of fused attention that a card allocates in otherwise than meta kernels."""
    return {
        aten._scaled_dot_product_flash_attention_backward.default: _flash_backward,
        # NATIVE/attention.cu, _cudnn_attention_forward: what dropout starts from comes first.
        aten._scaled_dot_product_cudnn_attention.default: (6, 7, 0, 1),
        aten._scaled_dot_product_cudnn_attention_backward.default: _cudnn_backward,
        aten._scaled_dot_product_efficient_attention.default: _efficient,
        aten._scaled_dot_product_efficient_attention_backward.default: _efficient_backward_on(card),
    }


def _flash_backward(
    grad_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    *rest: Any,
    **settings: Any,
) -> Tensors:
    """NATIVE/attention_backward.cu, _flash_attention_backward; NATIVE/flash_attn/flash_api.cpp, mha_bwd."""
    held = [_by_token(grad_out), _by_token(out)]
    grads = tuple(torch.empty_like(state) for state in (query, key, value))
    batch, heads, length, head_dim = query.shape
    rows, columns = round_up(length, 128), round_up(head_dim, 32 if head_dim <= 128 else 64)
    held.append(_scratch(query, batch, heads, rows))
    held.append(_scratch(query, batch, rows, heads, columns))
    if key.shape[1] != heads:
        held += [query.new_empty((batch, key.shape[2], heads, head_dim)) for _ in range(2)]
    return grads


def _by_token(tensor: torch.Tensor) -> torch.Tensor:
    """Return what the kernels read: the tensor itself, or a copy of it with the heads of a token together."""
    return tensor.transpose(1, 2).contiguous()


def _scratch(like: torch.Tensor, *shape: int) -> torch.Tensor:
    return like.new_empty(shape, dtype=torch.float32)


def _cudnn_backward(
    grad_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    *rest: Any,
    **settings: Any,
) -> Tensors:
    """ATen/native/cudnn/MHA.cpp, run_cudnn_SDP_bprop; the workspace is one buffer.

    cudnn-frontend's include/cudnn_frontend/node/scaled_dot_product_flash_attention.h names what is in it: the
    row sums and the gradient of the query in fp32; gradients of grouped heads are virtual there. What a
    kernel of cuDNN asks beyond that is not published.
    """
    grads = tuple(torch.empty_like(state) for state in (query, key, value))
    like_out = grad_out if grad_out.stride(-1) == 1 else torch.empty_like(out)
    batch, heads, length, head_dim = query.shape
    workspace = query.new_empty((4 * batch * heads * length * (1 + head_dim),), dtype=torch.uint8)
    del workspace, like_out
    return grads


def _efficient(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **settings: Any
) -> tuple[torch.Tensor, ...]:
    """NATIVE/attention.cu, _efficient_attention_forward: seed and offset stay on the host without dropout.

    Of heads above 128 the result is summed up in memory, in fp32 (kNeedsOutputAccumulatorBuffer).
    """
    with _disable_current_modes():
        shown = aten._scaled_dot_product_efficient_attention(query, key, value, *rest, **settings)
    out, sums = (torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device) for x in shown[:2])
    if query.dtype in HALF and max(query.shape[-1], value.shape[-1]) > _IN_REGISTERS:
        _sum = _scratch(query, *out.shape)
    return (out, sums, *shown[2:])


def _efficient_backward_on(card: Card) -> Callable[..., Tensors]:
    def backward(
        grad_out: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        logsumexp: torch.Tensor,
        seed: torch.Tensor,
        offset: torch.Tensor,
        dropout_p: float,
        grad_input_mask: list[bool],
        *rest: Any,
        **settings: Any,
    ) -> Tensors:
        """NATIVE/attention_backward.cu, _efficient_attention_backward."""
        grad_out = _by_token(grad_out)
        grads = [_empty_by_token(state) for state in (query, key, value)]
        bias_grad = None
        if bias is not None and grad_input_mask[3]:
            *leading, length = bias.shape
            bias_grad = bias.new_empty((*leading, round_up(length, 16)))[..., :length]
        if query.dtype in HALF:
            delta = _scratch(query, *query.shape[:3])
        else:
            delta = (grad_out * out.transpose(1, 2)).sum(-1).transpose(-2, -1).contiguous()
        num_bytes = efficient_workspace_bytes(query, key, value, dropout_p, card)
        workspace = query.new_empty((num_bytes,), dtype=torch.uint8)
        del delta, workspace
        return (*grads, bias_grad)

    return backward


def _empty_by_token(state: torch.Tensor) -> torch.Tensor:
    batch, heads, length, head_dim = state.shape
    return state.new_empty((batch, length, heads, head_dim)).transpose(1, 2)


def efficient_workspace_bytes(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout_p: float, card: Card
) -> int:
    """Return the bytes in which memory-efficient backward sums up gradients.

    Source: NATIVE/mem_eff_attention/kernel_backward.h, Params::workspace_size; which of its kernels runs, by
    dispatch_cutlassB in kernels/cutlassB.h and the loop over them in NATIVE/attention_backward.cu.
    """
    batch, heads, queries, head_dim = query.shape
    keys, value_dim = key.shape[2], value.shape[-1]
    half = query.dtype in HALF
    rows, columns, in_registers = _efficient_tile(max(head_dim, value_dim), half, dropout_p > 0, card)
    splits = -(-keys // columns)
    if batch * heads >= 256 and keys <= 2 * columns:
        splits = 1
    staged = 0
    if half and not in_registers:
        splits = min(splits, 200 // (batch * heads))
        staged = columns * (round_up(head_dim, rows) + round_up(value_dim, rows)) * max(splits, 1)
    tiles = -(-queries // rows) * -(-head_dim // columns)
    elements = round_up(staged + tiles * (4 + rows * columns), 4)
    return 4 * batch * heads * elements


@chosen_by_card
def _efficient_tile(head_dim: int, half: bool, dropout: bool, card: Card) -> tuple[int, int, bool]:
    """Return (rows, columns, whether gradients of key and value stay in registers) of a kernel's tile."""
    ampere = card.capability >= (8, 0)
    large = card.capability in HOLDS_128_ROWS and (half or ampere)
    if head_dim <= 64 or not large:
        return 64, 64, half and head_dim <= 64
    if head_dim > 128:
        return 128, 64, False
    if half and ampere and (head_dim > 96 or dropout):
        return 128, 128, True
    return 128, 64, half
