"""Unsloth's kernels: adapters fused with their base layers, norms and rotation, and its loss in chunks.

Followed is unsloth 2026.8, kernels/fast_lora.py (`LoRA_MLP`, `LoRA_QKV`, `LoRA_W`), kernels/utils.py
(`matmul_lora`, `fast_dequantize`), kernels/rms_layernorm.py, kernels/rope_embedding.py and models/llama.py,
and unsloth-zoo 2026.8, fused_losses/cross_entropy_loss.py. Norms and rotation allocate as Liger's do. Forward
unpacks 4-bit weights into one buffer that stays; backward writes the gradient of the input over the input.

Shapes, where T is tokens, I and O a projection's sizes, r the rank: x [T, I] · A [r, I] · B [O, r].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from types import MethodType
from typing import Any

import torch
from torch.nn import functional as F

from qbench.errors import StepError
from qbench.scenario.liger import Norm
from qbench.step.fused_losses import IGNORED
from qbench.step.liger_kernels import replace_layers
from qbench.step.lora_kernels import (
    MLP,
    QKV,
    Part,
    activated,
    activation_back,
    adapted,
    flat,
    layers,
    matrices,
)
from qbench.step.tiled_scores import Logits, slices
from qbench.units import GIB, round_up

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "granite")
"""Model types that run Unsloth's own layers (`FastLlamaModel` and its like); others are compiled."""

ROTARY_STEP = 8192

TARGET_BYTES = 4 * GIB
"""Most that logits of a chunk take in fp32 (`_get_chunk_multiplier`: half of what is free, at most 4 GiB)."""


class Room:
    """The buffers that forward unpacks all weights into (`WEIGHT_BUFFERS`, `ABSMAX_BUFFERS`)."""

    def __init__(self) -> None:
        self._weight: torch.Tensor | None = None
        self._scales: torch.Tensor | None = None

    def unpacked(self, part: Part) -> torch.Tensor:
        """Return the weight [O, I], in the buffer where it is packed."""
        quant = part.quant
        if quant is None or part.kernels == "cpu":
            return part.unpacked()
        size, count = quant.shape.numel(), quant.absmax.numel()
        device = part.weight.device
        if self._weight is None or self._weight.numel() < size:
            self._weight = torch.empty(size, dtype=quant.dtype, device=device)
        if self._scales is None or self._scales.numel() < count:
            self._scales = torch.empty(count, dtype=torch.float32, device=device)
        return self._weight[:size].view(quant.shape)


def fuse_for_unsloth(model: Any, kernels: str) -> None:
    """Let attention and MLP of each layer run Unsloth's kernels, where all are adapted without dropout.

    Raises StepError on a GPU, where Unsloth itself would have to patch the model.
    """
    if any(parameter.is_cuda for parameter in model.parameters()):
        raise StepError("lora_kernels unsloth is planned only; run Unsloth itself with qbench dryrun")
    text = model.config.get_text_config()
    if text.model_type not in FAMILIES:
        return
    is_gemma = text.model_type.startswith("gemma")
    norm = Norm(1.0 if is_gemma else 0.0, exact=is_gemma, in_place=not is_gemma)
    replace_layers(model.get_base_model(), ("rms_norm", "rope"), norm, kernels)
    _keep_rotary_tables(model, text, kernels)
    room = Room()
    for layer in layers(model):
        attention, mlp = layer.self_attn, layer.mlp
        if all(adapted(attention, QKV)) and _without_dropout(attention.q_proj):
            _fuse_qkv(attention, kernels, room)
        if all(adapted(attention, ("o_proj",))) and _without_dropout(attention.o_proj):
            attention.o_proj.forward = MethodType(_alone(kernels, room), attention.o_proj)
        if all(adapted(mlp, MLP)) and _without_dropout(mlp.gate_proj):
            mlp.forward = MethodType(_mlp("gelu" if is_gemma else "silu", kernels, room), mlp)


def _keep_rotary_tables(model: Any, text: Any, kernels: str) -> None:
    """Keep sines and cosines of all positions on the card (`extend_rope_embedding`, in steps of 8,192)."""
    rotary = next((one for name, one in model.named_modules() if name.endswith("rotary_emb")), None)
    if kernels == "cpu" or rotary is None:
        return
    positions = round_up(text.max_position_embeddings, ROTARY_STEP)
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    for name in ("cos_cached", "sin_cached"):
        table = torch.empty((positions, size), dtype=torch.bfloat16, device="meta")
        rotary.register_buffer(name, table, persistent=False)


def _without_dropout(module: Any) -> bool:
    return isinstance(module.lora_dropout[module.active_adapters[0]], torch.nn.Identity)


def _fuse_qkv(attention: Any, kernels: str, room: Room) -> None:
    waiting: dict[str, torch.Tensor] = {}

    def first(self: Any, x: torch.Tensor) -> torch.Tensor:
        modules = [getattr(attention, name) for name in QKV]
        found = _projected(_Projections, x, modules, kernels, room)
        query, waiting["k_proj"], waiting["v_proj"] = found
        return query

    attention.q_proj.forward = MethodType(first, attention.q_proj)
    for name in QKV[1:]:
        handed = MethodType(lambda _, x, name=name: waiting.pop(name), getattr(attention, name))
        getattr(attention, name).forward = handed


def _alone(kernels: str, room: Room) -> Any:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return _projected(_Projections, x, [self], kernels, room)[0]

    return forward


def _mlp(activation: str, kernels: str, room: Room) -> Any:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        modules = [getattr(self, name) for name in MLP]
        return _projected(_Mlp, x, modules, kernels, room, activation)[0]

    return forward


def _projected(
    function: Any, x: torch.Tensor, modules: Sequence[Any], kernels: str, room: Room, activation: str = ""
) -> tuple[torch.Tensor, ...]:
    parts = [Part.of(module, kernels) for module in modules]
    adapters = [matrix for module in modules for matrix in matrices(module)]
    found: tuple[torch.Tensor, ...] = function.apply(x, parts, room, activation, *adapters)
    return found


def _product(
    x: torch.Tensor, part: Part, room: Room, first: torch.Tensor, second: torch.Tensor, back: bool = False
) -> torch.Tensor:
    """Return x [T, I] times the base weight, plus the adapters' share (`matmul_lora`)."""
    weight = room.unpacked(part)
    out = torch.matmul(x, weight if back else weight.t())
    del weight
    down = torch.matmul(x, first.t().to(x.dtype))
    out.addmm_(down, second.t().to(x.dtype), alpha=part.scale)
    if part.bias is not None and not back:
        out += part.bias
    return out


def _adapter_gradients(
    x: torch.Tensor, gradient: torch.Tensor, pair: tuple[torch.Tensor, torch.Tensor], scale: float
) -> Iterator[torch.Tensor]:
    a, b = pair
    grad_a, grad_b = torch.empty_like(a.t()), torch.empty_like(b.t())
    grad_a.addmm_(x.t(), gradient @ b, alpha=scale, beta=0)
    grad_b.addmm_(a @ x.t(), gradient, alpha=scale, beta=0)
    yield grad_a.t()
    yield grad_b.t()


def _input_gradient(
    gradients: Sequence[torch.Tensor], parts: Sequence[Part], pairs: Any, x: torch.Tensor | None
) -> torch.Tensor:
    """Return the gradient of the input, written over `x` where it is given."""
    weight = parts[0].unpacked()
    found = gradients[0] @ weight if x is None else torch.matmul(gradients[0], weight, out=x)
    del weight
    for number, (gradient, part, (a, b)) in enumerate(zip(gradients, parts, pairs, strict=True)):
        if number:
            found.addmm_(gradient, part.unpacked())
        found.addmm_(gradient @ b, a, alpha=part.scale)
    return found


class _Projections(torch.autograd.Function):
    """`LoRA_QKV`, and for a single projection `LoRA_W`."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, parts: Sequence[Part], room: Room, _: str, *adapters: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        rows = flat(x)
        pairs = zip(adapters[::2], adapters[1::2], strict=True)
        outs = [_product(rows, part, room, a, b) for part, (a, b) in zip(parts, pairs, strict=True)]
        ctx.save_for_backward(x, *adapters)
        ctx.parts = parts
        return tuple(out.view(*x.shape[:-1], -1) for out in outs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, *adapters = ctx.saved_tensors
        parts: Sequence[Part] = ctx.parts
        gradients = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        rows = flat(x)
        lowered = [matrix.to(x.dtype) for matrix in adapters]
        pairs = list(zip(lowered[::2], lowered[1::2], strict=True))
        found: list[torch.Tensor] = []
        for gradient, pair, part in zip(gradients, pairs, parts, strict=True):
            found += _adapter_gradients(rows, gradient, pair, part.scale)
        grad_x = _input_gradient(gradients, parts, pairs, rows if len(parts) > 1 else None)
        return grad_x.view(x.shape), None, None, None, *found


class _Mlp(torch.autograd.Function):
    """`LoRA_MLP`."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, parts: Sequence[Part], room: Room, activation: str, *adapters: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        rows = flat(x)
        gate = _product(rows, parts[0], room, adapters[0], adapters[1])
        up = _product(rows, parts[1], room, adapters[2], adapters[3])
        hidden = activated(gate, up, activation, parts[0].kernels)
        out = _product(hidden, parts[2], room, adapters[4], adapters[5])
        ctx.save_for_backward(x, gate, up, *adapters)
        ctx.parts, ctx.room, ctx.activation = parts, room, activation
        return (out.view(*x.shape[:-1], -1),)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, gate, up, *adapters = ctx.saved_tensors
        gate_part, up_part, down_part = ctx.parts
        gradient, rows = flat(grads[0]), flat(x)
        lowered = [matrix.to(x.dtype) for matrix in adapters]
        of_gate, of_up, of_down = zip(lowered[::2], lowered[1::2], strict=True)
        hidden = _product(gradient, down_part, ctx.room, of_down[1].t(), of_down[0].t(), back=True)
        hidden, grad_gate, grad_up = activation_back(hidden, gate, up, ctx.activation, gate_part.kernels)
        found = [
            *_adapter_gradients(rows, grad_gate, of_gate, gate_part.scale),
            *_adapter_gradients(rows, grad_up, of_up, up_part.scale),
            *_adapter_gradients(hidden, gradient, of_down, down_part.scale),
        ]
        grad_x = _input_gradient([grad_up, grad_gate], [up_part, gate_part], [of_up, of_gate], rows)
        return grad_x.view(x.shape), None, None, None, *found


def unsloth_loss(
    hidden: torch.Tensor, head: Any, labels: torch.Tensor, items: Any, kernels: str, logits: Logits
) -> torch.Tensor:
    """Return the loss of `unsloth_fused_ce_loss`: all work is done in forward, for one chunk after the other.

    `items` is the number of tokens in the update, None for the mean over this batch.
    """
    function: Any = _Chunks
    found: torch.Tensor = function.apply(hidden, head.weight, head.bias, labels, items, kernels, logits)
    return found


def chunks_of(tokens: int, words: int) -> int:
    """Return the chunks of a loss (`get_chunk_size`): one within the target, else a multiple of four."""
    exact = tokens * words * 4 / TARGET_BYTES
    return 1 if exact <= 1 else math.ceil(exact / 4) * 4


class _Chunks(torch.autograd.Function):
    """`UnslothFusedLoss`; torch.compile keeps no fp32 logits, and writes their gradient over them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        items: torch.Tensor | None,
        kernels: str,
        logits: Logits,
    ) -> torch.Tensor:
        targets = torch.empty_like(labels)
        targets[..., :-1] = labels[..., 1:]
        targets[..., -1] = IGNORED
        flat_targets = targets.view(-1)
        divisor = ((flat_targets != IGNORED).sum() if items is None else items).float()
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        rows, grad_rows = flat(hidden), flat(grad_hidden)
        size = -(-rows.shape[0] // chunks_of(rows.shape[0], weight.shape[0]))
        for piece in slices(rows.shape[0], size):
            part = rows[piece].to(weight.dtype)
            products = F.linear(part, weight, bias)
            total += _into_gradient(products, flat_targets[piece], divisor, kernels, logits)
            grad_rows[piece] = products @ weight
            if grad_weight is not None:
                grad_weight.add_(products.t() @ part)
            del products
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grads[0].float().mean()
        grad_hidden.mul_(scale)
        if grad_weight is not None:
            grad_weight.mul_(scale)
        return grad_hidden, grad_weight, None, None, None, None, None


def _into_gradient(
    products: torch.Tensor, targets: torch.Tensor, divisor: torch.Tensor, kernels: str, logits: Logits
) -> torch.Tensor:
    """Replace logits [R, V] by the gradient of their loss, which is returned."""
    if kernels == "cuda":
        sums = torch.empty(products.shape[0], dtype=torch.float32, device=products.device)
        products.sub_(sums.unsqueeze(-1))
        return sums.sum() / divisor
    with torch.enable_grad():
        leaf = products.detach().float().requires_grad_()
        loss = F.cross_entropy(logits.of(leaf), targets, ignore_index=IGNORED, reduction="sum") / divisor
        (gradient,) = torch.autograd.grad(loss, leaf)
    products.copy_(gradient)
    found: torch.Tensor = loss.detach()
    return found
