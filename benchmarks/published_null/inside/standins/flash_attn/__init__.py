"""A stand-in for flash-attn 2.7.3, of which the index has no wheel. It computes nothing.

It allocates what the forward and backward passes do, in their order (flash_attn_interface.py; mha_fwd and
mha_bwd of flash_api.cpp, without splits over keys, which steps of training size do not take).
"""

import torch

__version__ = "2.7.3"


def _rows_contiguous(*tensors):
    return tuple(t if t.stride(-1) == 1 else t.contiguous() for t in tensors)


def _rounded(n, to):
    return (n + to - 1) // to * to


class FlashAttnFunc(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, with_grad):
        needs_grad = with_grad and any(x.requires_grad for x in (q, k, v))
        q, k, v = _rows_contiguous(q, k, v)
        batch, length, heads, _ = q.shape
        out = torch.empty_like(q)
        logsumexp = torch.empty((batch, heads, length), dtype=torch.float32, device=q.device)
        rng_state = torch.empty(2, dtype=torch.int64, device=q.device)
        if needs_grad:
            ctx.save_for_backward(q, k, v, out, logsumexp, rng_state)
        return out

    @staticmethod
    def backward(ctx, dout):
        q, k, v, out, *_ = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        dout, *_ = _rows_contiguous(dout, out)
        batch, length, heads, size = q.shape
        length_k, heads_k = k.shape[1:3]
        shape = (batch, heads, _rounded(length, 128))
        # All are alive until the pass returns.
        scratch = [torch.empty(shape, dtype=torch.float32, device=q.device)]
        width = _rounded(size, 32) if size <= 192 else 256
        shape = (batch, _rounded(length, 128), heads, width)
        scratch.append(torch.empty(shape, dtype=torch.float32, device=q.device))
        if heads_k != heads:
            shape = (batch, length_k, heads_k, heads // heads_k, size)
            wide = [torch.empty(shape, dtype=q.dtype, device=q.device) for _ in (dk, dv)]
            torch.sum(wide[0], dim=3, out=dk)
            torch.sum(wide[1], dim=3, out=dv)
        return dq, dk, dv, None


def flash_attn_func(q, k, v, *args, **kwargs):
    return FlashAttnFunc.apply(q, k, v, torch.is_grad_enabled())


def flash_attn_varlen_func(*args, **kwargs):
    raise NotImplementedError("the stand-in has no batches with padding")
