"""The losses of Liger and Cut Cross Entropy: linear head and cross-entropy in one, never all logits at once.

Followed are liger-kernel 0.8.5, ops/fused_linear_cross_entropy.py, and cut-cross-entropy 25.1.1, cce.py with
cce_lse_forward.py, indexed_dot.py and cce_backward.py. On a GPU the libraries run; here stands what they
allocate, and on the CPU, where neither has a kernel, torch operators give the values.

Liger makes logits for a chunk of tokens, turns them into gradients in place, and keeps nothing but the
gradient of the hidden states: all work is done in forward. Cut Cross Entropy keeps logits in registers; it
holds a logsumexp for each token, an average for each word, and locks.

Shapes, where R is tokens, H hidden size, V vocabulary: rows [R, H] · weight [V, H] · targets [R].
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch.nn import functional as F

from qbench.errors import StepError
from qbench.step.tiled_scores import Logits, slices

IGNORED = -100
"""Label that no loss is computed for."""
CPU_TOKENS = 512
"""Rows of logits at once on the CPU, where no library decides it."""


def liger_loss(
    hidden: torch.Tensor, head: Any, labels: torch.Tensor, items: Any, kernels: str, logits: Logits
) -> torch.Tensor:
    """Return the loss as liger_kernel/transformers/model/loss_utils.py, `LigerForCausalLMLoss`, makes it.

    `items` is the number of tokens in the update, None for the mean over this batch.
    """
    targets = F.pad(labels, (0, 1), value=IGNORED)[..., 1:].contiguous().view(-1)
    rows = hidden.view(-1, hidden.shape[-1])
    loss: torch.Tensor
    function: Any
    if rows.device.type == "cuda":
        function = _library("liger_kernel.transformers.functional", "liger_fused_linear_cross_entropy")
        reduction = "mean" if items is None else "sum"
        loss = function(
            rows, head.weight, targets, bias=head.bias, reduction=reduction, softcap=logits.softcap
        )
    else:
        function = _LigerLoss
        loss = function.apply(rows, head.weight, head.bias, targets, items is None, kernels, logits)
    return loss if items is None else loss / items


def cut_cross_entropy(
    hidden: torch.Tensor, head: Any, labels: torch.Tensor, items: Any, kernels: str, logits: Logits
) -> torch.Tensor:
    """Return the loss of `cut_cross_entropy.linear_cross_entropy` with `shift=True`.

    `items` is as for `liger_loss`. Raises StepError where its kernels take no such hidden states or head.
    """
    if head.bias is not None:
        raise StepError("loss_type cut_cross_entropy takes no head with a bias; choose loss_type full_logits")
    if kernels == "cuda" and hidden.dtype == torch.float32:
        raise StepError(
            "loss_type cut_cross_entropy takes hidden states in bf16 or fp16; norms in fp32 make them fp32: "
            "set upcast: axolotl or none (--upcast none)"
        )
    loss: torch.Tensor
    function: Any
    if hidden.device.type == "cuda":
        function = _library("cut_cross_entropy", "linear_cross_entropy")
        reduction = "mean" if items is None else "sum"
        loss = function(hidden, head.weight, labels, shift=True, reduction=reduction, softcap=logits.softcap)
    else:
        valids = _valids(labels)
        rows = hidden.contiguous().flatten(0, -2)
        function = _CutCrossEntropy
        loss = function.apply(rows, head.weight, labels.flatten(), valids, items is None, kernels, logits)
    return loss if items is None else loss / items


def _library(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        package = module.partition(".")[0].replace("_", "-")
        raise StepError(
            f"this loss runs kernels of {package}, which could not be loaded ({error}); pip install {package}"
        ) from error


def _valids(labels: torch.Tensor) -> torch.Tensor:
    """Return the flat index of each token whose successor has a label (cut_cross_entropy/utils.py)."""
    found = labels[..., 1:] != IGNORED
    # How many there are is not known on meta: all of them, as in batches of full sequences.
    places = (
        torch.empty((found.numel(), found.dim()), dtype=torch.int64, device="meta")
        if found.is_meta
        else found.nonzero()
    )
    index = places.to(torch.int32)
    for axis in range(found.dim() - 1):
        index[:, axis] *= labels.stride(axis)
    return index.sum(1)


class _LigerLoss(torch.autograd.Function):
    """`fused_linear_cross_entropy_forward` and `_backward`: gradients are made in forward and kept."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        is_mean: bool,
        kernels: str,
        logits: Logits,
    ) -> torch.Tensor:
        tokens, hidden = rows.shape
        words = weight.shape[0]
        pieces = -(-tokens // -(-words // hidden))
        chunk = min(1 << (pieces - 1).bit_length(), tokens)
        grad_rows = torch.zeros_like(rows)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        losses = torch.zeros(tokens, dtype=torch.float32, device=rows.device)
        has_label = targets != IGNORED
        count = has_label.sum()
        storage = _room(rows, weight, bias, chunk, kernels)
        for piece in slices(tokens, chunk):
            if storage is None:
                products = rows[piece] @ weight.t()
                if bias is not None:
                    products = products + bias
            else:
                products = storage[: piece.stop - piece.start]
                torch.mm(rows[piece], weight.t(), out=products)
            if kernels == "cpu":
                scale = 1 / count if is_mean else 1.0
                losses[piece] = _into_gradient(products, targets[piece], logits, scale)
            if storage is None:
                grad_rows[piece] = products @ weight
            else:
                torch.mm(products, weight, out=grad_rows[piece])
            if grad_weight is not None:
                _add_outer(grad_weight, products, rows[piece], kernels)
            del products
        ctx.save_for_backward(grad_rows.detach(), grad_weight)
        loss: torch.Tensor = losses.sum()
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad_rows, grad_weight = ctx.saved_tensors
        # Its kernel multiplies in place.
        grad_rows.mul_(grads[0].to(grad_rows.dtype))
        if grad_weight is not None:
            grad_weight.mul_(grads[0].to(grad_weight.dtype))
        return grad_rows, grad_weight, None, None, None, None, None


def _room(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, chunk: int, kernels: str
) -> torch.Tensor | None:
    """Return room for the logits of one chunk where all chunks share it (`_can_use_mm_out`), else None."""
    is_cast = torch.is_autocast_enabled(kernels) and torch.get_autocast_dtype(kernels) != rows.dtype
    if kernels != "cuda" or rows.dtype != weight.dtype or is_cast or bias is not None:
        return None
    return torch.empty((chunk, weight.shape[0]), dtype=rows.dtype, device=rows.device)


def _into_gradient(products: torch.Tensor, targets: torch.Tensor, logits: Logits, scale: Any) -> torch.Tensor:
    """Replace products of head and rows by the gradient of their loss; return the loss of each row."""
    with torch.enable_grad():
        leaf = products.detach().float().requires_grad_()
        losses = F.cross_entropy(logits.of(leaf), targets, ignore_index=IGNORED, reduction="none") * scale
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    products.copy_(gradient)
    found: torch.Tensor = losses.detach()
    return found


def _add_outer(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, kernels: str) -> None:
    """Add left.T @ right to the gradient of the head; CUDA does so in place where the dtypes are one."""
    if kernels == "cuda" and left.dtype == total.dtype:
        torch.addmm(total, left.t(), right.to(left.dtype), out=total)
    else:
        total += torch.mm(left.t(), right.to(left.dtype)).float()


class _CutCrossEntropy(torch.autograd.Function):
    """`LinearCrossEntropyFunction`: what forward keeps, and the gradients and locks of backward."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        valids: torch.Tensor,
        is_mean: bool,
        kernels: str,
        logits: Logits,
    ) -> torch.Tensor:
        count, words = valids.numel(), weight.shape[0]
        log_sums = rows.new_full((count,), -math.inf, dtype=torch.float32)
        locks = rows.new_zeros((-(-count // 128),), dtype=torch.int32)
        averages = rows.new_zeros((words,), dtype=torch.float32)
        del locks
        negative = rows.new_zeros((count,), dtype=torch.float32)
        if kernels == "cpu":
            for piece in slices(count, CPU_TOKENS):
                z = logits.of(rows[valids[piece]].float() @ weight.float().t())
                log_sums[piece] = torch.logsumexp(z, -1)
                negative[piece] = -z.gather(-1, targets[valids[piece] + 1].unsqueeze(-1)).squeeze(-1)
        losses = negative.add_(log_sums)
        ctx.save_for_backward(rows, weight, log_sums, targets, valids, averages)
        ctx.kernels, ctx.logits, ctx.is_mean = kernels, logits, is_mean
        loss: torch.Tensor = losses.mean() if is_mean else losses.sum()
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        rows, weight, _, targets, valids, averages = ctx.saved_tensors
        if ctx.kernels == "cuda":
            # Words are visited in the order of their averages (`sort_logit_avg`).
            order = torch.argsort(averages).to(torch.int32)
        grad_rows = torch.zeros_like(rows)
        grad_weight = torch.zeros_like(weight, dtype=rows.dtype) if ctx.needs_input_grad[1] else None
        if ctx.kernels == "cuda":
            # cce_backward.py: `nd_locks`, then locks for both gradients.
            parts = -(-weight.shape[1] // 64)
            locks = [
                rows.new_zeros((-(-each // parts), parts), dtype=torch.int32)
                for each in (valids.numel(), weight.shape[0])
            ]
            del locks, order
        else:
            scale = grads[0] / valids.numel() if ctx.is_mean else grads[0]
            for piece in slices(valids.numel(), CPU_TOKENS):
                part = rows[valids[piece]]
                products = part.float() @ weight.float().t()
                gradient = products
                _into_gradient(gradient, targets[valids[piece] + 1], ctx.logits, scale)
                grad_rows[valids[piece]] = (gradient @ weight.float()).to(rows.dtype)
                if grad_weight is not None:
                    grad_weight += (gradient.t() @ part.float()).to(grad_weight.dtype)
        found = None if grad_weight is None else grad_weight.to(weight.dtype)
        return grad_rows, found, None, None, None, None, None
