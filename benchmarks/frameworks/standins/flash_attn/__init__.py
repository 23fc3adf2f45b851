"""Stand-in for flash-attn, which is on no index as a wheel: PyTorch's own build of the same kernels.

PyTorch compiles flash-attn's source, so what is allocated forward and backward is the same.
"""

import torch

__version__ = "2.8.3"


def _attend(q, k, v, cu_q, cu_k, max_q, max_k, dropout_p, causal, softmax_scale, window_size):
    left, right = (None if size < 0 else size for size in window_size)
    size = q.shape[-1]
    padded = -size % 8
    if padded:
        q, k, v = (torch.nn.functional.pad(each, (0, padded)) for each in (q, k, v))
    out = torch.ops.aten._flash_attention_forward(
        q,
        k,
        v,
        cu_q,
        cu_k,
        max_q,
        max_k,
        dropout_p,
        causal,
        False,
        scale=softmax_scale or size**-0.5,
        window_size_left=left,
        window_size_right=right,
    )[0]
    return out[..., :size]


def flash_attn_func(
    q,
    k,
    v,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
):
    """Attend in a batch: (batch, length, heads, size)."""
    lengths = (q.shape[1], k.shape[1])
    return _attend(q, k, v, None, None, *lengths, dropout_p, causal, softmax_scale, window_size)


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
):
    """Attend within rows that are packed one behind another: (tokens, heads, size)."""
    lengths = (cu_seqlens_q, cu_seqlens_k, int(max_seqlen_q), int(max_seqlen_k))
    return _attend(q, k, v, *lengths, dropout_p, causal, softmax_scale, window_size)


def flash_attn_with_kvcache(*args, **kwargs):
    """Refuse: generation is not what this stands in for."""
    raise NotImplementedError
