"""Fused LoRA kernels of axolotl: base product and adapters of a group of projections in one function.

Followed is axolotl 067b021, kernels/lora.py (`LoRA_MLP`, `LoRA_QKV`, `LoRA_O`), kernels/quantize.py and
monkeypatch/lora_kernels.py. On a GPU axolotl's own run; here stands what they allocate, and on the CPU torch
operators give the values. Backward writes into what forward kept of gate and up, and a 4-bit weight is
unpacked anew for each product.

Shapes, where T is tokens, I and O a projection's sizes, r the rank: x [T, I] · A [r, I] · B [O, r].
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import bitsandbytes as bnb
import torch
from torch.nn import functional as F

from qbench.errors import StepError
from qbench.scenario.schema import Point

QKV = ("q_proj", "k_proj", "v_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
_APPLY_MLP = {"silu": "apply_lora_mlp_swiglu", "gelu": "apply_lora_mlp_geglu"}


def fuse_adapters(model: Any, point: Point, kernels: str) -> None:
    """Let attention and MLP of each layer run the kernels that the point names, where all are adapted.

    Raises StepError where the base is in 8 bit, the adapters are DoRA's, or axolotl is not there on a GPU.
    """
    chosen = point.choices.lora_kernels
    if chosen == "none" or point.lora is None:
        return
    for what, is_on in (("precision int8", point.precision == "int8"), ("use_dora", point.lora.use_dora)):
        if is_on:
            raise StepError(f"lora_kernels {chosen} is not planned with {what}; set lora_kernels: none")
    on_gpu = any(parameter.is_cuda for parameter in model.parameters())
    library = _library() if on_gpu else None
    activation = _activation(model.config.get_text_config())
    for layer in layers(model):
        attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
        if chosen != "mlp" and all(adapted(attention, (*QKV, "o_proj"))):
            _fuse_attention(attention, kernels, library)
        if chosen != "attention" and activation and all(adapted(mlp, MLP)):
            _fuse_mlp(mlp, activation, kernels, library)


def _library() -> Any:
    try:
        return importlib.import_module("axolotl.kernels.lora")
    except ImportError as error:
        raise StepError(
            f"lora_kernels runs axolotl's on a GPU, which could not be loaded ({error}); install axolotl, or "
            "set lora_kernels: none"
        ) from error


def _activation(text: Any) -> str:
    """Return silu or gelu; empty where axolotl has no kernel (`apply_lora_kernel_patches`)."""
    names = ("hidden_act", "hidden_activation", "mlp_hidden_act")
    name = next((value for key in names if (value := getattr(text, key, None))), "")
    return "gelu" if "gelu" in name else "silu" if name == "silu" else ""


def layers(model: Any) -> Iterator[Any]:
    """Yield the layers of the language part (`get_layers`)."""
    base = model.get_base_model()
    inner = getattr(base, "language_model", None) or base.base_model
    yield from getattr(getattr(inner, "language_model", inner), "layers", ())


def adapted(module: Any, names: Sequence[str]) -> Iterator[bool]:
    yield module is not None
    yield from (hasattr(getattr(module, name, None), "lora_A") for name in names)


def _fuse_attention(attention: Any, kernels: str, library: Any) -> None:
    """Compute q, k and v at the first of them, which hands the others over, and o by itself."""
    waiting: dict[str, torch.Tensor] = {}

    def first(self: Any, x: torch.Tensor) -> torch.Tensor:
        if library is not None:
            query, waiting["k_proj"], waiting["v_proj"] = library.apply_lora_qkv(attention, x)
            return query  # type: ignore[no-any-return]
        found = _projected(x, [getattr(attention, name) for name in QKV], kernels)
        query, waiting["k_proj"], waiting["v_proj"] = found
        return query

    def output(self: Any, x: torch.Tensor) -> torch.Tensor:
        if library is not None:
            return library.apply_lora_o(attention, x)  # type: ignore[no-any-return]
        return _projected(x, [self], kernels)[0]

    attention.q_proj.forward = MethodType(first, attention.q_proj)
    for name in QKV[1:]:
        handed = MethodType(lambda _, x, name=name: waiting.pop(name), getattr(attention, name))
        getattr(attention, name).forward = handed
    attention.o_proj.forward = MethodType(output, attention.o_proj)


def _fuse_mlp(mlp: Any, activation: str, kernels: str, library: Any) -> None:
    if library is not None:
        mlp.forward = MethodType(getattr(library, _APPLY_MLP[activation]), mlp)
        return

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        parts = [Part.of(getattr(self, name), kernels) for name in MLP]
        function: Any = _Mlp
        adapters = [matrix for name in MLP for matrix in matrices(getattr(self, name))]
        found: torch.Tensor = function.apply(x, _dropped(self.gate_proj, x), parts, activation, *adapters)
        return found

    mlp.forward = MethodType(forward, mlp)


def _projected(x: torch.Tensor, modules: Sequence[Any], kernels: str) -> tuple[torch.Tensor, ...]:
    parts = [Part.of(module, kernels) for module in modules]
    function: Any = _Projections
    adapters = [matrix for module in modules for matrix in matrices(module)]
    found: tuple[torch.Tensor, ...] = function.apply(x, _dropped(modules[0], x), parts, *adapters)
    return found


def matrices(module: Any) -> tuple[torch.Tensor, torch.Tensor]:
    name = module.active_adapters[0]
    return module.lora_A[name].weight, module.lora_B[name].weight


def _dropped(module: Any, x: torch.Tensor) -> torch.Tensor | None:
    """Return the input after the dropout that all of a group share; None without one (`_apply_dropout`)."""
    dropout = module.lora_dropout[module.active_adapters[0]]
    return None if isinstance(dropout, torch.nn.Identity) or not module.training else dropout(x)


@dataclass(frozen=True, slots=True)
class Part:
    """The frozen side of a projection."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    quant: Any
    """bitsandbytes' QuantState; None for a weight that is not packed."""
    scale: float
    kernels: str

    @classmethod
    def of(cls, module: Any, kernels: str) -> Part:
        layer = module.base_layer
        quant = getattr(layer.weight, "quant_state", None)
        return cls(layer.weight, layer.bias, quant, module.scaling[module.active_adapters[0]], kernels)

    def unpacked(self) -> torch.Tensor:
        """Return the weight [O, I] as kernels/quantize.py, `dequantize`, makes it."""
        nested = getattr(self.quant, "state2", None)
        if self.quant is None:
            return self.weight
        if nested is None or self.kernels == "cpu":
            return bnb.functional.dequantize_4bit(self.weight, self.quant)
        out = torch.empty(self.quant.shape, dtype=self.quant.dtype, device=self.weight.device)
        scales = torch.empty(self.quant.absmax.numel(), dtype=torch.float32, device=self.weight.device)
        scales += self.quant.offset
        return out

    def product(
        self,
        x: torch.Tensor,
        first: torch.Tensor,
        second: torch.Tensor,
        dropped: Any = None,
        back: bool = False,
    ) -> torch.Tensor:
        """Return x times the base weight, plus the two adapter matrices' share (`matmul_lora`).

        `back` is the way of gradients: no bias, and the weight as it lies. Dropout is of the adapters alone.
        """
        weight = self.unpacked()
        out = torch.matmul(x, weight if back else weight.t())
        del weight
        first, second = first.t().to(x.dtype), second.t().to(x.dtype)
        out.addmm_((x if dropped is None else dropped) @ first, second, alpha=self.scale)
        if self.bias is not None and not back:
            out += self.bias
        return out


def _check(x: torch.Tensor, part: Part) -> None:
    dtype = part.weight.dtype if part.quant is None else part.quant.dtype
    if x.dtype != dtype:
        raise StepError(
            f"lora_kernels takes hidden states in {dtype}, as the base is, not {x.dtype}, as fp32 norms make "
            "them: set upcast: axolotl or none (--upcast none)"
        )


def flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(-1, tensor.shape[-1])


def _adapter_gradients(
    x: torch.Tensor, gradient: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of A and B, and the gradient times B, which that of the input uses again."""
    through_b = gradient @ b
    grad_a, grad_b = torch.empty_like(a.t()), torch.empty_like(b.t())
    grad_a.addmm_(x.t(), through_b, alpha=scale, beta=0)
    grad_b.addmm_(a @ x.t(), gradient, alpha=scale, beta=0)
    return grad_a.t(), grad_b.t(), through_b


class _Projections(torch.autograd.Function):
    """`LoRA_QKV`, and for a single projection `LoRA_O`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dropped: torch.Tensor | None,
        parts: Sequence[Part],
        *adapters: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        _check(x, parts[0])
        rows, of_adapters = flat(x), None if dropped is None else flat(dropped)
        pairs = zip(adapters[::2], adapters[1::2], strict=True)
        outs = [
            part.product(rows, a, b, of_adapters).view(*x.shape[:-1], -1)
            for part, (a, b) in zip(parts, pairs, strict=True)
        ]
        ctx.save_for_backward(x, x if dropped is None else dropped, *(one.to(x.dtype) for one in adapters))
        ctx.parts, ctx.has_dropout = parts, dropped is not None
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, for_adapters, *adapters = ctx.saved_tensors
        parts: Sequence[Part] = ctx.parts
        gradients = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        rows = flat(for_adapters)
        pairs = list(zip(adapters[::2], adapters[1::2], strict=True))
        found: list[torch.Tensor] = []
        through: list[torch.Tensor] = []
        for gradient, (a, b), part in zip(gradients, pairs, parts, strict=True):
            grad_a, grad_b, through_b = _adapter_gradients(rows, gradient, a, b, part.scale)
            found += [grad_a, grad_b]
            through.append(through_b)
        grad_x = gradients[0] @ parts[0].unpacked()
        for gradient, part in zip(gradients[1:], parts[1:], strict=True):
            grad_x.addmm_(gradient, part.unpacked())
        grad_dropped = None
        if ctx.has_dropout and len(parts) == 1:
            grad_dropped = (through[0] @ adapters[0] * parts[0].scale).view(x.shape)
        else:
            grad_dropped = torch.zeros_like(rows) if ctx.has_dropout else None
            total = grad_x if grad_dropped is None else grad_dropped
            for through_b, (a, _), part in zip(through, pairs, parts, strict=True):
                total.addmm_(through_b, a, alpha=part.scale)
        grad_dropped = None if grad_dropped is None else grad_dropped.view(x.shape)
        return grad_x.view(x.shape), grad_dropped, None, *found


class _Mlp(torch.autograd.Function):
    """`LoRA_MLP`: dropout is of gate and up alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dropped: torch.Tensor | None,
        parts: Sequence[Part],
        activation: str,
        *adapters: torch.Tensor,
    ) -> torch.Tensor:
        _check(x, parts[0])
        gate_part, up_part, down_part = parts
        rows, of_adapters = flat(x), None if dropped is None else flat(dropped)
        gate = gate_part.product(rows, adapters[0], adapters[1], of_adapters)
        up = up_part.product(rows, adapters[2], adapters[3], of_adapters)
        hidden = activated(gate, up, activation, gate_part.kernels)
        output = down_part.product(hidden, adapters[4], adapters[5])
        saved = (x, x if dropped is None else dropped, gate, up)
        ctx.save_for_backward(*saved, *(one.to(x.dtype) for one in adapters))
        ctx.parts, ctx.activation, ctx.has_dropout = parts, activation, dropped is not None
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, for_adapters, gate, up, gate_a, gate_b, up_a, up_b, down_a, down_b = ctx.saved_tensors
        gate_part, up_part, down_part = ctx.parts
        gradient, rows = flat(grads[0]), flat(for_adapters)
        grad_hidden = down_part.product(gradient, down_b.t(), down_a.t(), back=True)
        hidden, grad_gate, grad_up = activation_back(grad_hidden, gate, up, ctx.activation, gate_part.kernels)
        of_down = _adapter_gradients(hidden, gradient, down_a, down_b, down_part.scale)
        of_up = _adapter_gradients(rows, grad_up, up_a, up_b, up_part.scale)
        of_gate = _adapter_gradients(rows, grad_gate, gate_a, gate_b, gate_part.scale)
        grad_x = torch.matmul(grad_up, up_part.unpacked())
        grad_x.addmm_(grad_gate, gate_part.unpacked())
        grad_dropped = torch.zeros_like(rows) if ctx.has_dropout else None
        total = grad_x if grad_dropped is None else grad_dropped
        total.addmm_(of_up[2], up_a, alpha=up_part.scale)
        total.addmm_(of_gate[2], gate_a, alpha=gate_part.scale)
        grad_dropped = None if grad_dropped is None else grad_dropped.view(x.shape)
        return grad_x.view(x.shape), grad_dropped, None, None, *of_gate[:2], *of_up[:2], *of_down[:2]


def activated(gate: torch.Tensor, up: torch.Tensor, activation: str, kernels: str) -> torch.Tensor:
    if kernels == "cuda":
        return torch.mul(gate, up)  # One kernel reads both and writes the product.
    function = F.silu if activation == "silu" else F.gelu
    return function(gate.float()).to(up.dtype) * up


def activation_back(
    gradient: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, activation: str, kernels: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the activation's output and the gradients of gate and up, each in place of what was given."""
    if kernels == "cuda":
        gradient.addcmul_(gate, up)  # One kernel reads and writes all three.
        return gradient, gate, up
    exact = gate.float()
    if activation == "silu":
        sigmoid = torch.sigmoid(exact)
        active, slope = exact * sigmoid, sigmoid * (1 + exact * (1 - sigmoid))
    else:
        normal = 0.5 * (torch.erf(exact * 0.5**0.5) + 1)
        active = normal * exact
        slope = normal + exact * torch.exp(-0.5 * exact * exact) * (2 * torch.pi) ** -0.5
    hidden = active.to(up.dtype) * up
    gate.copy_((gradient * up).float() * slope)
    up.copy_(gradient * active.to(up.dtype))
    gradient.copy_(hidden)
    return gradient, gate, up
