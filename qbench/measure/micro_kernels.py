"""The kernels that `qbench calibrate` times: those that training steps are made of, each at several sizes.

None of them is fitted to a model: products on a grid of sizes and layouts, every other operator on vectors or
matrices of a few sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qbench.memory.work.op_costs import OpCost, op_cost
from qbench.units import MIB

aten: Any = torch.ops.aten

ROWS = {"cpu": (64, 1024, 8192), "cuda": (64, 2048, 65536)}
"""Rows of 512 elements that operators work on."""
COLUMNS = 512

PRODUCT_SIZES = {"cpu": (8, 64, 512, 2048), "cuda": (16, 128, 1024, 8192)}
"""Sizes of all three dimensions of a product: ranks, heads, hidden sizes, tokens."""
MOST_PRODUCT_FLOPS = {"cpu": 5e9, "cuda": 1.2e12}
"""Products above are left out; what is just below is as fast."""

LENGTHS = {"cpu": (32, 128, 512), "cuda": (128, 1024, 4096)}
POOL_BYTES = 128 * MIB
"""Memory that operands of products are taken from; more than caches hold."""
MOST_WINDOWS = 256

HEADS = 8
HEAD_DIMS = (64, 128)


@dataclass(frozen=True, slots=True)
class MicroKernel:
    """Functions that run one operator, each on tensors of its own, and the same on almost nothing."""

    runs: Sequence[Callable[[], Any]]
    empty: Callable[[], Any] | None
    """None where the operator has no small form that does nothing; then all its time counts."""
    keeps: bool = True
    """Whether a step keeps what it makes for a while; a dequantized weight is thrown away at once."""


class _Costs(TorchDispatchMode):
    """Takes down the cost of the operators that run inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[OpCost] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen.append(op_cost(func, args, kwargs or {}, out))
        return out


def cost_of(kernel: MicroKernel) -> OpCost:
    """Return the cost of the one operator of a kernel that does work."""
    costs = _Costs()
    with costs:
        kernel.runs[0]()
    return next(cost for cost in costs.seen if cost.kind != "none")


def kernels(device: str, dtype: torch.dtype) -> Iterator[MicroKernel]:
    """Yield the kernels of a device for one dtype of the arithmetic."""
    yield from _products(device, dtype)
    yield from _batched_products(device, dtype)
    yield from _attention(device, dtype)
    for rows in ROWS[device]:
        yield from _on_matrices(device, dtype, rows)
    yield from _dequantization(device, dtype)


def _products(device: str, dtype: torch.dtype) -> Iterator[MicroKernel]:
    """Yield products in which one operand is never in the cache, as weights and saved activations are not."""
    sizes = PRODUCT_SIZES[device]
    small = torch.ones(1, 1, device=device, dtype=dtype)
    # The largest operand must fit, which is larger than any cache.
    elements = max(POOL_BYTES // dtype.itemsize, max(sizes) ** 2)
    pool = torch.randn(1 << 20, device=device).to(dtype).repeat(-(-elements >> 20))
    for layout in ("nn", "nt", "tn"):
        for m, n, k in itertools.product(sizes, repeat=3):
            if 2 * m * n * k > MOST_PRODUCT_FLOPS[device]:
                continue
            firsts, seconds = _windows(pool, m, k, layout[0]), _windows(pool, k, n, layout[1])
            pairs = [(first, seconds[0]) for first in firsts]
            if layout != "tn":
                pairs = [(firsts[-1], second) for second in seconds]
            runs = [_call(aten.mm.default, *pair) for pair in pairs]
            yield MicroKernel(runs, _call(aten.mm.default, small, small))


def _windows(pool: torch.Tensor, rows: int, columns: int, layout: str) -> list[torch.Tensor]:
    """Return matrices side by side in a pool."""
    size = rows * columns
    count = min(MOST_WINDOWS, pool.numel() // size)
    parts = [pool[index * size : (index + 1) * size] for index in range(count)]
    if layout == "n":
        return [part.view(rows, columns) for part in parts]
    return [part.view(columns, rows).t() for part in parts]


def _batched_products(device: str, dtype: torch.dtype) -> Iterator[MicroKernel]:
    small = torch.ones(1, 1, 1, device=device, dtype=dtype)
    for length, dim in itertools.product(LENGTHS[device], HEAD_DIMS):
        for m, n, k in ((length, length, dim), (length, dim, length), (dim, length, length)):
            for transposed in (False, True):
                first = torch.randn(HEADS, m, k, device=device, dtype=dtype)
                shape = (HEADS, n, k) if transposed else (HEADS, k, n)
                second = torch.randn(shape, device=device, dtype=dtype)
                second = second.transpose(1, 2) if transposed else second
                run = _call(aten.bmm.default, first, second)
                yield MicroKernel([run], _call(aten.bmm.default, small, small))


def _attention(device: str, dtype: torch.dtype) -> Iterator[MicroKernel]:
    if device == "cuda" and dtype == torch.float32:
        return
    for length, dim in itertools.product(LENGTHS[device], HEAD_DIMS):
        states = [
            torch.randn(1, length, HEADS, dim, device=device, dtype=dtype).transpose(1, 2) for _ in range(3)
        ]
        if device == "cpu":
            forward: Any = aten._scaled_dot_product_flash_attention_for_cpu.default
            backward: Any = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
            out, sums = forward(*states, 0.0, True)
            saved: tuple[Any, ...] = (sums, 0.0, True)
        else:
            forward = aten._scaled_dot_product_flash_attention.default
            backward = aten._scaled_dot_product_flash_attention_backward.default
            out, *rest = forward(*states, 0.0, True)
            saved = (*rest[:5], 0.0, True, *rest[5:7])
        yield MicroKernel([_call(forward, *states, 0.0, True)], None)
        yield MicroKernel([_call(backward, torch.randn_like(out), *states, out, *saved)], None)


def _on_matrices(device: str, dtype: torch.dtype, rows: int) -> Iterator[MicroKernel]:
    """Yield every other operator on a matrix, with the same on one element."""
    makers = {**_ELEMENTWISE, **_ROWWISE, **_COPIES}
    values = torch.rand(rows, COLUMNS, device=device).add_(0.1).to(dtype)
    for make in makers.values():
        yield MicroKernel(
            [make(values.clone())],
            make(torch.ones(1, 2, device=device, dtype=dtype)),
        )


Maker = Callable[[torch.Tensor], Callable[[], Any]]


def _call(operator: Any, *args: Any) -> Callable[[], Any]:
    return lambda: operator(*args)


def _two(operator: Any) -> Maker:
    return lambda x: _call(operator, x, x.clone())


def _one(operator: Any, *args: Any) -> Maker:
    return lambda x: _call(operator, x, *args)


_ELEMENTWISE: dict[str, Maker] = {
    "add": _two(aten.add.Tensor),
    "add_": _two(aten.add_.Tensor),
    "mul": _two(aten.mul.Tensor),
    "mul by a number": _one(aten.mul.Tensor, 0.99),
    "mul_": _one(aten.mul_.Tensor, 0.99),
    "div": _one(aten.div.Tensor, 0.99),
    "div_": _one(aten.div_.Scalar, 0.99),
    "sub": _two(aten.sub.Tensor),
    "neg": _one(aten.neg.default),
    "pow": _one(aten.pow.Tensor_Scalar, 2),
    "rsqrt": _one(aten.rsqrt.default),
    "sqrt": _one(aten.sqrt.default),
    "tanh": _one(aten.tanh.default),
    "tanh_backward": _two(aten.tanh_backward.default),
    "sigmoid": _one(aten.sigmoid.default),
    "silu": _one(aten.silu.default),
    "silu_backward": _two(aten.silu_backward.default),
    "gelu": _one(aten.gelu.default),
    "gelu_backward": _two(aten.gelu_backward.default),
    "lerp_": lambda x: _call(aten.lerp_.Scalar, x, x.clone(), 0.1),
    "addcmul_": lambda x: _call(aten.addcmul_.default, x, x.clone() * 0.01, x.clone()),
    "addcdiv_": lambda x: _call(aten.addcdiv_.default, x, x.clone() * 0.01, x.clone()),
    "where": lambda x: _call(aten.where.self, x > 0.5, x, x.clone()),
    "bernoulli_": lambda x: _call(aten.bernoulli_.float, x.clone(), 0.95),
    "native_dropout": lambda x: _call(aten.native_dropout.default, x, 0.05, True),
    "native_dropout_backward": lambda x: _call(aten.native_dropout_backward.default, x, x > 0.5, 1.05),
    "masked_fill": lambda x: _call(aten.masked_fill.Scalar, x, x > 0.5, 0.0),
}

_ROWWISE: dict[str, Maker] = {
    "sum": lambda x: _call(aten.sum.dim_IntList, x, [-1], True),
    "mean": lambda x: _call(aten.mean.dim, x, [-1], True),
    "_softmax": _one(aten._softmax.default, -1, False),
    "_softmax_backward_data": lambda x: _call(aten._softmax_backward_data.default, x, x.clone(), -1, x.dtype),
    "_log_softmax": _one(aten._log_softmax.default, -1, False),
    "_log_softmax_backward_data": lambda x: _call(
        aten._log_softmax_backward_data.default, x, x.clone(), -1, x.dtype
    ),
    "native_layer_norm": lambda x: _call(
        aten.native_layer_norm.default, x, [x.shape[1]], x[0].clone(), x[0].clone(), 1e-5
    ),
    "native_layer_norm_backward": lambda x: _layer_norm_backward(x),
    "nll_loss_forward": lambda x: _call(aten.nll_loss_forward.default, x, _targets(x), None, 1, -100),
    "nll_loss_backward": lambda x: _nll_loss_backward(x),
    "embedding": lambda x: _call(aten.embedding.default, x.clone(), _targets(x)),
    "linalg_vector_norm": _one(aten.linalg_vector_norm.default),
}

_COPIES: dict[str, Maker] = {
    "clone": _one(aten.clone.default),
    "clone of strided rows": lambda x: _call(
        aten.clone.default,
        torch.stack([x, x], 1)[:, 0],
    ),
    "clone of a transposed matrix": lambda x: _contiguous(x.t()),
    "to fp32": lambda x: _converted(x.to(torch.bfloat16), torch.float32),
    "to 16 bit": lambda x: _converted(x, torch.bfloat16 if x.dtype == torch.float32 else torch.float32),
    "copy_": lambda x: _call(aten.copy_.default, x, x.clone()),
    "cat": lambda x: _call(aten.cat.default, [x, x.clone()], -1),
    "zero_": lambda x: _call(aten.zero_.default, x.clone()),
}


def _contiguous(x: torch.Tensor) -> Callable[[], Any]:
    return lambda: aten.clone.default(x, memory_format=torch.contiguous_format)


def _converted(x: torch.Tensor, dtype: torch.dtype) -> Callable[[], Any]:
    return lambda: aten._to_copy.default(x, dtype=dtype)


def _targets(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)


def _layer_norm_backward(x: torch.Tensor) -> Callable[[], Any]:
    weight = x[0].clone()
    _, mean, deviation = aten.native_layer_norm.default(x, [x.shape[1]], weight, weight, 1e-5)
    return _call(
        aten.native_layer_norm_backward.default,
        x,
        x.clone(),
        [x.shape[1]],
        mean,
        deviation,
        weight,
        weight,
        [True, False, False],
    )


def _nll_loss_backward(x: torch.Tensor) -> Callable[[], Any]:
    total = torch.ones((), dtype=x.dtype, device=x.device)
    return _call(aten.nll_loss_backward.default, total, x, _targets(x), None, 1, -100, total)


def _dequantization(device: str, dtype: torch.dtype) -> Iterator[MicroKernel]:
    """Yield bitsandbytes' kernels as its backward calls them: the weight, and a nested absmax."""
    from bitsandbytes import functional

    for rows in ROWS[device]:
        weight = torch.randn(rows, 2 * COLUMNS, device=device, dtype=dtype)
        packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
        operator: Any = torch.ops.bitsandbytes.dequantize_4bit.default
        yield MicroKernel(
            [_call(operator, packed, state.absmax, 64, "nf4", state.shape, dtype)], None, keeps=False
        )
        if dtype == torch.float32:
            nested, nested_state = functional.quantize_blockwise(state.absmax, blocksize=256)
            operator = torch.ops.bitsandbytes.dequantize_blockwise.default
            yield MicroKernel(
                [_call(operator, nested, nested_state.absmax, nested_state.code, 256, torch.float32)],
                None,
                keeps=False,
            )
