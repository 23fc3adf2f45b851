"""Liger's kernels of layers: norms, rotary embedding and the product of a gated MLP.

Followed is liger-kernel 0.8.5, ops/rms_norm.py, ops/rope.py, ops/swiglu.py and ops/geglu.py. On a GPU Liger's
own run; here stands what they allocate, and on the CPU torch operators give the values. A norm keeps its
input and one number a row, the gated product writes its gradients into what forward kept of gate and up, and
rotation happens in place.

Shapes, where R is rows, D the size of a row: x [R, D] · weight [D].
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection, Iterator
from contextvars import ContextVar
from types import FunctionType, MethodType
from typing import Any

import torch
from torch.nn import functional as F

from qbench.errors import StepError
from qbench.scenario.liger import PLANNED, Norm
from qbench.scenario.schema import Point

_ROTATION = "apply_rotary_pos_emb"

MULTIPROCESSORS: ContextVar[Callable[[], int]] = ContextVar("MULTIPROCESSORS", default=lambda: 1)
"""Gives those of the card that is planned for: each sums the gradient of a norm's weight on its own."""


def use_liger(model: Any, point: Point, kernels: str) -> None:
    """Let the layers of a model run the kernels of Liger that the point names.

    Raises StepError for a model type whose kernels are not planned, and where Liger is not there on a GPU.
    """
    chosen = point.train.liger_kernels
    if not chosen:
        return
    base: Any = model if point.lora is None else model.get_base_model()
    norm = PLANNED.get(base.config.model_type)
    if norm is None:
        raise StepError(
            f"liger_kernels is planned for {', '.join(sorted(PLANNED))}, not for {base.config.model_type}; "
            "leave it out"
        )
    if any(parameter.is_cuda for parameter in base.parameters()):
        _apply_library(base, chosen)
        return
    replace_layers(base, chosen, norm, kernels)


def replace_layers(base: Any, chosen: Collection[str], norm: Norm, kernels: str) -> None:
    """Let norms, rotation or gated products of a model (rms_norm, rope, glu) allocate as fused kernels do."""
    for module in base.modules():
        kind = type(module).__name__
        if "rms_norm" in chosen and kind.endswith("RMSNorm"):
            module.forward = MethodType(_norm_forward(norm, kernels), module)
        if "glu" in chosen and kind.endswith("MLP"):
            module.forward = MethodType(_mlp_forward(module, kernels), module)
        if "rope" in chosen and kind.endswith("Attention"):
            module.forward = MethodType(_with_rotation(type(module), kernels), module)


def _apply_library(base: Any, chosen: tuple[str, ...]) -> None:
    try:
        apply = importlib.import_module("liger_kernel.transformers")._apply_liger_kernel_to_instance
    except (ImportError, AttributeError) as error:
        raise StepError(
            f"liger_kernels runs Liger's on a GPU, which could not be loaded ({error}); pip install "
            "liger-kernel"
        ) from error
    glu = "glu" in chosen
    apply(
        model=base,
        rope="rope" in chosen,
        rms_norm="rms_norm" in chosen,
        swiglu=glu,
        geglu=glu,
        cross_entropy=False,
        fused_linear_cross_entropy=False,
    )


def _norm_forward(norm: Norm, kernels: str) -> Callable[..., torch.Tensor]:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        eps = getattr(self, "variance_epsilon", None) or getattr(self, "eps", None) or 1e-6
        function: Any = _RmsNorm
        found: torch.Tensor = function.apply(x, self.weight, eps, norm, kernels)
        return found

    return forward


def _mlp_forward(mlp: Any, kernels: str) -> Callable[..., torch.Tensor]:
    fused = hasattr(mlp, "gate_up_proj")
    is_gelu = "gelu" in str(getattr(mlp.config, "hidden_activation", None) or mlp.config.hidden_act)

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1) if fused else (self.gate_proj(x), self.up_proj(x))
        function: Any = _GatedProduct
        found: torch.Tensor = self.down_proj(function.apply(gate, up, is_gelu, kernels))
        return found

    return forward


def _with_rotation(attention: type, kernels: str) -> Callable[..., Any]:
    """Return the forward of an attention class with Liger's rotation in place of the module's own."""
    own: Any = inspect.unwrap(attention.forward)  # type: ignore[attr-defined]

    def rotate(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        function: Any = _Rotation
        found: tuple[torch.Tensor, torch.Tensor] = function.apply(q, k, cos, sin, kernels)
        return found

    names = {**own.__globals__, _ROTATION: rotate}
    forward = FunctionType(own.__code__, names, own.__name__, own.__defaults__, own.__closure__)
    forward.__kwdefaults__ = own.__kwdefaults__
    return forward


class _RmsNorm(torch.autograd.Function):
    """`LigerRMSNormFunction`."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, norm: Norm, kernels: str
    ) -> torch.Tensor:
        rows = x.contiguous().view(-1, x.shape[-1])
        out = torch.empty_like(rows)
        roots = torch.empty(rows.shape[0], dtype=torch.float32, device=x.device)
        if kernels == "cpu":
            exact = rows.float()
            torch.rsqrt(exact.pow(2).mean(-1) + eps, out=roots)
            scaled = exact * roots.unsqueeze(-1)
            shifted = weight + norm.offset
            out.copy_(scaled * shifted.float() if norm.exact else scaled.to(x.dtype) * shifted)
        else:
            torch.mul(rows, rows, out=out)  # One kernel reads rows and writes both.
        ctx.save_for_backward(rows, weight, roots)
        ctx.norm, ctx.kernels = norm, kernels
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        rows, weight, roots = ctx.saved_tensors
        shape, norm = grads[0].shape, ctx.norm
        gradient = grads[0].contiguous().view(-1, shape[-1])
        parts = None
        if ctx.needs_input_grad[1]:
            parts = torch.empty((MULTIPROCESSORS.get()(), shape[-1]), dtype=torch.float32, device=rows.device)
        found = gradient if norm.in_place else torch.zeros_like(gradient)
        if ctx.kernels == "cpu":
            root = roots.unsqueeze(-1)
            exact = rows.float()
            if parts is not None:
                parts[:] = (gradient.float() * exact * root).sum(0) / len(parts)
            through = gradient.float() * (weight + norm.offset).float()
            mean = (through * exact).mean(-1, keepdim=True)
            found.copy_(root * (through - root * root * mean * exact))
        else:
            found.addcmul_(gradient, rows)  # One kernel reads both and writes the gradient.
        of_weight = None if parts is None else parts.sum(dim=0).to(weight.dtype)
        return found.view(shape), of_weight, None, None, None


class _GatedProduct(torch.autograd.Function):
    """`LigerSiLUMulFunction` and `LigerGELUMulFunction`: gradients take the place of what forward kept."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, is_gelu: bool, kernels: str) -> torch.Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(gate)
        if kernels == "cpu":
            out.copy_(_active(gate.float(), is_gelu).to(up.dtype) * up)
        else:
            torch.mul(gate, up, out=out)  # One kernel reads both and writes the product.
        ctx.save_for_backward(gate, up)
        ctx.is_gelu, ctx.kernels = is_gelu, kernels
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        gate, up = ctx.saved_tensors
        gradient = grads[0].contiguous()
        if ctx.kernels == "cpu":
            with torch.enable_grad():
                exact = gate.detach().float().requires_grad_()
                active = _active(exact, ctx.is_gelu)
                (slope,) = torch.autograd.grad(active.sum(), exact)
            of_gate = gradient.float() * slope * up.float()
            up.copy_(gradient.float() * active.detach())
            gate.copy_(of_gate)
        else:
            up.addcmul_(gradient, gate)  # One kernel reads three and writes two.
        return gate, up, None, None


def _active(gate: torch.Tensor, is_gelu: bool) -> torch.Tensor:
    return F.gelu(gate, approximate="tanh") if is_gelu else F.silu(gate)


class _Rotation(torch.autograd.Function):
    """`LigerRopeFunction`: queries and keys [batch, heads, tokens, size] turn where they lie."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, kernels: str
    ) -> tuple[torch.Tensor, ...]:
        cos, sin = cos.contiguous(), sin.contiguous()
        ctx.save_for_backward(cos, sin)
        ctx.kernels = kernels
        return tuple(_turned([q, k], cos, sin, kernels))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        return (*_turned(grads, cos, -sin if ctx.kernels == "cpu" else sin, ctx.kernels), None, None, None)


def _turned(parts: Any, cos: torch.Tensor, sin: torch.Tensor, kernels: str) -> Iterator[torch.Tensor]:
    laid = [part.transpose(1, 2).contiguous() for part in parts]
    size = cos.shape[-1]
    for part in laid:
        if kernels == "cpu":
            turning = part[..., :size]
            half = torch.cat((-turning[..., size // 2 :], turning[..., : size // 2]), dim=-1)
            part[..., :size] = turning * cos.unsqueeze(2) + half * sin.unsqueeze(2)
        else:
            part[..., :size].mul_(cos.unsqueeze(2))
        yield part.transpose(1, 2)
