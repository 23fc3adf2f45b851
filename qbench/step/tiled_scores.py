"""Scores of hidden states against the output head, with one tile of logits at a time.

Followed is trl 1.16, kernels/chunked_logprob.py, `ChunkedLogProbFunction`: tiles of 4096 tokens by 32768
words, which backward makes again, and gradients summed in fp32. On the CPU a tile is folded with torch
operators, as there; on CUDA trl folds it in place with Triton, which allocates nothing, so that on meta
nothing happens to a tile.

The idea: the log-probability of a label needs of a row of logits only its logsumexp and the label's logit.
Both can be gathered tile by tile, as in an online softmax: with the largest logit so far m and
s = sum(exp(z - m)), a tile with the largest logit m' turns s into s * exp(m - max(m, m')) plus its own sum.
So no more than one tile of logits exists at a time; backward computes each tile again from `log_z`.

Shapes, where R is tokens (rows), D hidden size, V vocabulary (words):

    rows [R, D] · weight [V, D] · bias [V] · targets [R] · buffer, one tile [min(R, 4096), 32768]
    log_z, log_probs, entropy, is_top1 [R] · sums of gradients, in fp32: row_sum [R, D], weight_sum [V, D]
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

TILE_TOKENS = 4096
TILE_WORDS = 32768

TEMPERATURE = 1.0
"""Multiplied with, which makes a copy: SFTTrainer leaves trl's temperature at this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Logits:
    """How a model turns the head's output into logits."""

    scale: float
    softcap: float | None

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """Return the logits that an fp32 product gives; each step's input is freed by the next."""
        values = values * self.scale
        if self.softcap is not None:
            values = self.softcap * torch.tanh(values / self.softcap)
        return values * TEMPERATURE


class _Statistics:
    """Running sums over the tiles of a row, in fp32: what a log-softmax needs, and entropy and rank."""

    def __init__(self, rows: int, device: torch.device) -> None:
        def filled(value: float) -> torch.Tensor:
            return torch.full((rows,), value, device=device, dtype=torch.float32)

        self.largest, self.exp_sum, self.weighted_sum = filled(-math.inf), filled(0.0), filled(0.0)
        # trl makes these two also where nobody asks for what they give.
        self._unasked = (filled(0.0), filled(0.0))
        self.largest_before, self.target_logit = filled(-math.inf), filled(0.0)

    def fold(
        self, tile: torch.Tensor, rows: slice, targets: torch.Tensor, first: int, logits: Logits
    ) -> None:
        """Add one tile of logits, whose first word has the id `first`."""
        words = tile.shape[1]
        z = logits.of(tile.float())
        local = targets - first
        before = torch.arange(words, device=z.device) < local.unsqueeze(-1)
        largest_before = self.largest_before[rows]
        largest_before.copy_(torch.maximum(largest_before, z.masked_fill(~before, -math.inf).amax(-1)))
        largest = torch.maximum(self.largest[rows], z.amax(-1))
        rescale = torch.exp(self.largest[rows] - largest)
        e = torch.exp(z - largest.unsqueeze(-1))
        self.exp_sum[rows].mul_(rescale).add_(e.sum(-1))
        self.weighted_sum[rows].mul_(rescale).add_((e * z).sum(-1))
        self.largest[rows].copy_(largest)
        inside = (local >= 0) & (local < words)
        target = z.gather(-1, local.clamp(0, words - 1).unsqueeze(-1)).squeeze(-1)
        self.target_logit[rows].copy_(torch.where(inside, target, self.target_logit[rows]))

    def results(self) -> tuple[torch.Tensor, ...]:
        """Return log-normalizer, log-probability, entropy and whether the label is the likeliest word."""
        log_z = self.largest + torch.log(self.exp_sum)
        log_probs = self.target_logit - log_z
        entropy = log_z - self.weighted_sum / self.exp_sum
        is_top1 = (self.target_logit >= self.largest) & (self.target_logit > self.largest_before)
        return log_z, log_probs, entropy, is_top1


class TiledScores(torch.autograd.Function):
    """Scores of [rows, hidden] against the head's [words, hidden], with one tile of logits at a time.

    Local names live as long as in trl's function: the buffer, and the last slices in the lower precision.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        kernels: str,
        logits: Logits,
    ) -> tuple[torch.Tensor, ...]:
        # Entropy has no gradient here, so that backward need not make zeros for it.
        ctx.set_materialize_grads(False)
        autocast = torch.is_autocast_enabled(kernels)
        ctx.dtype = torch.get_autocast_dtype(kernels) if autocast else rows.dtype
        ctx.kernels, ctx.logits = kernels, logits
        statistics = _Statistics(rows.shape[0], rows.device)
        buffer = _tile_buffer(rows, ctx.dtype)
        for of_rows in slices(rows.shape[0], TILE_TOKENS):
            hidden = rows[of_rows].to(ctx.dtype)
            for of_words in slices(weight.shape[0], TILE_WORDS):
                tile = _project(hidden, weight[of_words].to(ctx.dtype), bias, of_words, buffer)
                if kernels == "cpu":
                    statistics.fold(tile, of_rows, targets[of_rows], of_words.start, logits)
        log_z, log_probs, entropy, is_top1 = statistics.results()
        ctx.save_for_backward(rows, weight, bias, targets, log_z, entropy)
        ctx.mark_non_differentiable(is_top1)
        return log_probs, entropy, is_top1

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        rows, weight, bias, targets, log_z, _ = ctx.saved_tensors
        inputs = (rows, weight, bias)
        row_sum, weight_sum, bias_sum = sums = [
            torch.zeros(tensor.shape, device=rows.device, dtype=torch.float32) if needed else None
            for tensor, needed in zip(inputs, ctx.needs_input_grad, strict=False)
        ]
        buffer = _tile_buffer(rows, ctx.dtype)
        grad = grads[0].float().contiguous()
        for of_rows in slices(rows.shape[0], TILE_TOKENS):
            hidden = rows[of_rows].to(ctx.dtype)
            for of_words in slices(weight.shape[0], TILE_WORDS):
                part = weight[of_words].to(ctx.dtype)
                tile = _project(hidden, part, bias, of_words, buffer)
                if ctx.kernels == "cpu":
                    _turn_into_gradient(
                        tile, targets[of_rows], of_words, log_z[of_rows], grad[of_rows], ctx.logits
                    )
                if row_sum is not None:
                    _add_product(row_sum[of_rows], tile, part, ctx.kernels)
                if weight_sum is not None:
                    _add_product(weight_sum[of_words], tile.t(), hidden, ctx.kernels)
                if bias_sum is not None:
                    bias_sum[of_words] += tile.sum(dim=0, dtype=torch.float32)
        found = (
            None if total is None else total.to(like.dtype) for total, like in zip(sums, inputs, strict=True)
        )
        return (*found, None, None, None)


def slices(length: int, width: int) -> Iterator[slice]:
    """Yield slices of `width`, the last as long as is left of `length`."""
    for start in range(0, length, width):
        yield slice(start, min(start + width, length))


def _tile_buffer(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return room for one tile: of full width, also for a smaller vocabulary."""
    return torch.empty((min(rows.shape[0], TILE_TOKENS), TILE_WORDS), device=rows.device, dtype=dtype)


def _project(
    hidden: torch.Tensor, part: torch.Tensor, bias: torch.Tensor | None, words: slice, buffer: torch.Tensor
) -> torch.Tensor:
    """Return hidden @ part.T as a view of the buffer."""
    tile = buffer[: hidden.shape[0], : part.shape[0]]
    torch.mm(hidden, part.t(), out=tile)
    if bias is not None:
        tile.add_(bias[words].to(tile.dtype))
    return tile


def _turn_into_gradient(
    tile: torch.Tensor,
    targets: torch.Tensor,
    words: slice,
    log_z: torch.Tensor,
    grad: torch.Tensor,
    logits: Logits,
) -> None:
    """Replace the products of a tile by the loss's gradient with respect to them, as trl does on the CPU."""
    y = tile.float() * logits.scale
    if logits.softcap is None:
        t = None
        z = y * TEMPERATURE
    else:
        t = torch.tanh(y / logits.softcap)
        z = logits.softcap * t * TEMPERATURE
    log_p = z - log_z.unsqueeze(-1)
    p = torch.exp(log_p)
    result = torch.zeros_like(z)
    is_target = torch.arange(words.start, words.stop, device=z.device) == targets.unsqueeze(-1)
    result += grad.unsqueeze(-1) * (is_target.float() - p)
    result = result * TEMPERATURE
    if t is not None:
        result = result * (1 - t * t)
    tile.copy_(result * logits.scale)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, kernels: str) -> None:
    """Add left @ right to an fp32 total; cuBLAS does so from 16-bit inputs, the CPU from fp32 copies."""
    if kernels == "cuda" and left.dtype != torch.float32:
        # `torch.addmm(..., out_dtype=torch.float32, out=total)` allocates nothing, and meta does not have it.
        return
    total.addmm_(left.float(), right.float())
