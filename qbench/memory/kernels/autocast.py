"""`torch.autocast` for meta tensors, which have no autocast of their own.

Autocast casts the inputs of some operators to the lower precision and those of others to fp32, and keeps
the cast form of trainable fp32 leaves until the context ends. A function mode does the same on meta.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

LOWER: frozenset[Any] = frozenset(
    {
        F.linear,
        F.conv1d,
        torch.conv1d,
        torch.matmul,
        torch.Tensor.matmul,
        torch.Tensor.__matmul__,
        torch.Tensor.__rmatmul__,
        torch.bmm,
        torch.Tensor.bmm,
        torch.mm,
        torch.Tensor.mm,
        torch.addmm,
        torch.baddbmm,
        torch.Tensor.baddbmm,
        torch.einsum,
    }
)
"""Functions of language models whose operators run in the lower precision, on CUDA and on the CPU.

Source: aten/src/ATen/autocast_mode.h, AT_FORALL_LOWER_PRECISION_FP and AT_FORALL_LOWER_PRECISION_FP_CPU;
scaled_dot_product_attention is among them and cast where its kernel is chosen.
"""

FP32_ON_CUDA: frozenset[Any] = frozenset(
    {
        F.layer_norm,
        torch.pow,
        torch.Tensor.pow,
        torch.Tensor.__pow__,
        torch.rsqrt,
        torch.Tensor.rsqrt,
        torch.exp,
        torch.Tensor.exp,
        torch.log,
        torch.Tensor.log,
        F.softplus,
        torch.norm,
        torch.Tensor.norm,
        F.cross_entropy,
        F.nll_loss,
        torch.logsumexp,
        torch.Tensor.logsumexp,
    }
)
"""Functions whose operators run in fp32 on CUDA (same file, AT_FORALL_FP32); the CPU does without."""

FP32_RESULT_ON_CUDA: frozenset[Any] = frozenset(
    {F.softmax, torch.softmax, torch.Tensor.softmax, F.log_softmax, torch.sum, torch.Tensor.sum, torch.cumsum}
)
"""Functions that get dtype=float32 on CUDA unless a dtype is given (AT_FORALL_FP32_SET_OPT_DTYPE)."""

_active: list[_AutocastMode] = []


class _AutocastMode(TorchFunctionMode):
    """Casts arguments as autocast does, with its cache of cast leaves."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.device = device
        self._on_cuda = device == "cuda"
        self._dtype = dtype
        self._cache: dict[int, torch.Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in LOWER:
            return func(*self.lower(args), **self.lower(kwargs))
        if self._on_cuda and func in FP32_ON_CUDA:
            return func(*_cast(args, _to_fp32), **_cast(kwargs, _to_fp32))
        # What stands in for a function names it, as softmax on CUDA does.
        in_fp32 = not FP32_RESULT_ON_CUDA.isdisjoint((func, getattr(func, "__wrapped__", None)))
        if self._on_cuda and in_fp32 and kwargs.get("dtype") is None and _is_float(args[0]):
            kwargs = kwargs | {"dtype": torch.float32}
        return func(*args, **kwargs)

    def lower(self, value: Any) -> Any:
        """Return arguments with floating-point tensors in the lower precision."""
        return _cast(value, self._to_lower)

    def _to_lower(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == self._dtype:
            return tensor
        # `cached_cast` in aten/src/ATen/autocast_mode.cpp: fp32 leaves that train are cast once.
        cacheable = tensor.dtype == torch.float32 and tensor.requires_grad and tensor.is_leaf
        if not cacheable or tensor._is_view():
            return tensor.to(self._dtype)
        known = self._cache.get(id(tensor))
        if known is None:
            known = self._cache[id(tensor)] = tensor.to(self._dtype)
        return known


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _to_fp32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.float32)


def _cast(value: Any, cast: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return cast(value) if value.is_floating_point() and value.dtype != torch.float64 else value
    if isinstance(value, (tuple, list)):
        # From the last to the first, as the arguments of `WrapFunction_` are evaluated.
        return type(value)([_cast(item, cast) for item in reversed(value)][::-1])
    if isinstance(value, dict):
        return {key: _cast(item, cast) for key, item in value.items()}
    return value


def lowered(*tensors: Any) -> tuple[Any, ...]:
    """Return attention's inputs as an active autocast would hand them on."""
    return tuple(_active[-1].lower(list(tensors))) if _active else tensors


@contextlib.contextmanager
def meta_autocast(device: str, dtype: torch.dtype) -> Iterator[None]:
    """Run the block on meta as under `torch.autocast(device, dtype)`; libraries that ask get that answer."""
    was_enabled, before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    torch.set_autocast_enabled(device, True)
    torch.set_autocast_dtype(device, dtype)
    mode = _AutocastMode(device, dtype)
    _active.append(mode)
    try:
        with mode:
            yield
    finally:
        _active.pop()
        torch.set_autocast_enabled(device, was_enabled)
        torch.set_autocast_dtype(device, before)


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """Run the block without the autocast of meta, if there is one."""
    if not _active:
        yield
        return
    device = _active[-1].device
    torch.set_autocast_enabled(device, False)
    try:
        with torch._C.DisableTorchFunction():
            yield
    finally:
        torch.set_autocast_enabled(device, True)


def keep_rotary_tables(model: torch.nn.Module) -> None:
    """Leave rotary tables in fp32: transformers switches autocast off around them, but not on meta."""
    for module in model.modules():
        if type(module).__name__.endswith("RotaryEmbedding"):
            module.forward = _without_autocast(module.forward)


def _without_autocast(forward: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return forward(*args, **kwargs)

    return wrapped
