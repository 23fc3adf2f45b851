"""What one operator costs: arithmetic, bytes read and written, by its arguments and outputs alone."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import torch
from torch.utils.flop_counter import flop_registry

OpKind = Literal[
    "matmul", "matmul_4bit", "attention", "dequantize", "reduction", "elementwise", "copy", "none"
]
"""What a kernel does, as far as its speed depends on it; `none` launches none, as views and allocation."""

_FLOPS: dict[Any, Any] = flop_registry

_WITHOUT_KERNEL = frozenset(
    [
        "empty",
        "empty_like",
        "empty_strided",
        "new_empty",
        "new_empty_strided",
        "_local_scalar_dense",
        "_unsafe_view",
    ]
)
_MATMUL = frozenset(["mm", "addmm", "bmm", "baddbmm", "_grouped_mm", "linear", "int8_mixed_scaled_mm"])
INTO_BUFFERS = frozenset(["split_with_sizes_copy", "chunk_cat", "all_gather_copy_in"])
"""Copies of FSDP2 between shards and what is gathered, which are given their outputs."""
_COPY = frozenset(["copy_", "_to_copy", "clone", "cat", "stack", "constant_pad_nd", "repeat"]) | INTO_BUFFERS
_REDUCTION = frozenset(
    [
        "sum",
        "mean",
        "var",
        "linalg_vector_norm",
        "_foreach_norm",
        "_softmax",
        "_softmax_backward_data",
        "_log_softmax",
        "_log_softmax_backward_data",
        "_safe_softmax",
        "native_layer_norm",
        "native_layer_norm_backward",
        "max",
        "amax",
        "argmax",
        "cumsum",
        "logsumexp",
    ]
)
_READS_WHAT_IT_WRITES = frozenset(["embedding", "index", "index_select", "gather"])
_OVERWRITES = (
    frozenset(["copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_", "_foreach_copy_"])
    | INTO_BUFFERS
)
_DTYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float64: "fp64",
    torch.int8: "int8",
}


@dataclass(frozen=True, slots=True)
class OpCost:
    """The cost of one run of an operator."""

    op: str
    """Name without namespace and overload: mm, _softmax, dequantize_4bit."""
    kind: OpKind
    dtype: str
    """dtype of the arithmetic: fp32, bf16, fp16, fp64, int8, or other."""
    flops: int = 0
    """Floating-point operations of matrix products and attention, a whole multiple of their shape's product;
    0 elsewhere, where bytes decide."""
    read_bytes: int = 0
    written_bytes: int = 0
    shape: tuple[int, ...] = ()
    """Of a product (batch, m, n, k); of attention (batch x heads, queries, keys, head dimension)."""
    layout: str = ""
    """Of a product's operands, `n` or `t` (transposed) each; of a copy: `strided` where rows are not side by
    side, `transposed` where the elements of a row are not."""

    @property
    def num_bytes(self) -> int:
        """Bytes read and written together."""
        return self.read_bytes + self.written_bytes

    def scaled(self, read: float, written: float) -> OpCost:
        """Return the cost where inputs are `read` times as large, and outputs `written` times.

        Bytes are whole, so what floating point adds to them is rounded away.
        """
        read_bytes, written_bytes = round(self.read_bytes * read), round(self.written_bytes * written)
        return replace(self, read_bytes=read_bytes, written_bytes=written_bytes)


def op_cost(func: Any, args: Any, kwargs: Any, out: Any) -> OpCost:
    """Return what one call of an operator costs; `out` is what it returned."""
    name, _ = _facts(func)
    inputs = list(tensors((*args, *kwargs.values())))
    kind = _kind(func, name)
    if kind == "none":
        return OpCost(name, kind, "other")
    written = sum(map(tensor_bytes, changed(func, args, kwargs) or tensors(out)))
    if name in _READS_WHAT_IT_WRITES:
        read = written
    else:
        read = sum(map(tensor_bytes, inputs)) - (written if name in _OVERWRITES else 0)
    shape = _shape(name, kind, args)
    flops = _flops(func, name, args, out, shape)
    return OpCost(
        name, kind, _dtype(inputs, out, kind), flops, read, written, shape, _layout(name, kind, args, inputs)
    )


def changed(func: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """Return the arguments that an operator writes to, none where it makes new tensors."""
    _, mutated = _facts(func)
    return list(tensors([_argument(place, args, kwargs) for place in mutated]))


def tensor_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes of a tensor's elements, those that an expanded one repeats counted once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return prod(size for size, stride in sizes if stride != 0 or size == 0) * tensor.element_size()


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of an argument, a list of them included."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)


@functools.cache
def _facts(func: Any) -> tuple[str, tuple[tuple[int, str], ...]]:
    """Return an operator's short name, and place and name of the arguments that it writes to."""
    schema = func._schema
    mutated = tuple(
        (place, argument.name)
        for place, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    return schema.name.rpartition("::")[2], mutated


def _argument(place: tuple[int, str], args: Any, kwargs: Any) -> Any:
    index, name = place
    return args[index] if index < len(args) else kwargs.get(name)


@functools.cache
def _kind(func: Any, name: str) -> OpKind:
    returned = [entry.alias_info for entry in func._schema.returns]
    is_view = any(alias is not None and not alias.is_write for alias in returned)
    if is_view or name in _WITHOUT_KERNEL:
        return "none"
    if "attention" in name:
        return "attention"
    if name.startswith("dequantize"):
        return "dequantize"
    for kind, names in _NAMES.items():
        if name in names:
            return kind
    return "elementwise"


_NAMES: dict[OpKind, frozenset[str]] = {"matmul": _MATMUL, "copy": _COPY, "reduction": _REDUCTION}


def _dtype(inputs: list[torch.Tensor], out: Any, kind: OpKind = "matmul") -> str:
    """Return the dtype of the first tensor that has a known one; dequantizing is named after its output."""
    for tensor in (*tensors(out), *inputs) if kind == "dequantize" else (*inputs, *tensors(out)):
        if tensor.dtype in _DTYPES:
            return _DTYPES[tensor.dtype]
    return "other"


def _shape(name: str, kind: OpKind, args: Any) -> tuple[int, ...]:
    if name == "int8_mixed_scaled_mm":
        return (1, args[1].numel() // args[1].shape[-1], args[2].shape[0], args[1].shape[-1])
    if name == "linear":
        return (1, args[0].numel() // args[0].shape[-1], args[1].shape[0], args[1].shape[-1])
    if kind == "matmul":
        first, second = args[1:3] if name in ("addmm", "baddbmm") else args[:2]
        batch = first.shape[0] if first.dim() == 3 else 1
        return (batch, first.shape[-2], second.shape[-1], first.shape[-1])
    if kind == "attention":
        query, key = args[1:3] if "backward" in name else args[:2]
        return (query.shape[0] * query.shape[1], query.shape[2], key.shape[2], query.shape[3])
    return ()


def _layout(name: str, kind: OpKind, args: Any, inputs: list[torch.Tensor]) -> str:
    if name == "linear":
        return "nt"
    if kind == "matmul":
        operands = args[1:3] if name in ("addmm", "baddbmm") else args[:2]
        return "".join("n" if _row_is_together(operand) else "t" for operand in operands)
    if kind != "copy" or not inputs or inputs[-1].is_contiguous():
        return ""
    return "strided" if _row_is_together(inputs[-1]) else "transposed"


def _row_is_together(tensor: torch.Tensor) -> bool:
    return tensor.dim() == 0 or tensor.stride(-1) == 1 or tensor.shape[-1] == 1


def _flops(func: Any, name: str, args: Any, out: Any, shape: tuple[int, ...]) -> int:
    """Return two operations for each multiplication of a product, else what torch counts."""
    if "attention" in name:
        return _attention_flops(func, args, shape)
    if shape:
        return 2 * prod(shape)
    formula = _FLOPS.get(func.overloadpacket)
    return 0 if formula is None else int(formula(*args, out_val=out))


def _attention_flops(func: Any, args: Any, shape: tuple[int, ...]) -> int:
    """Two products of every query with every key and value in forward, five in backward.

    A causal kernel skips half of them. Backward computes the scores again: torch/utils/flop_counter.py,
    `sdpa_backward_flop_count`.
    """
    products = 5 if "backward" in func._schema.name else 2
    return (1 if _is_causal(func, args) else 2) * products * prod(shape)


def _is_causal(func: Any, args: Any) -> bool:
    for index, argument in enumerate(func._schema.arguments):
        if argument.name == "is_causal":
            return bool(args[index]) if index < len(args) else bool(argument.default_value)
    return False


def product_of_4bit(args: Any, kwargs: Any, out: torch.Tensor) -> OpCost:
    """Return the cost of bitsandbytes' fused product: the weight is read packed and written nowhere."""
    first = args[0]
    shape = (1, first.numel() // first.shape[-1], out.shape[-1], first.shape[-1])
    read = sum(map(tensor_bytes, tensors((*args, *kwargs.values()))))
    written = tensor_bytes(out)
    return OpCost("gemm_4bit", "matmul_4bit", _dtype([first], out), 2 * prod(shape), read, written, shape)


def dequantizations(args: Any, kwargs: Any) -> Iterator[OpCost]:
    """Yield what `bitsandbytes::gemm_4bit` dequantizes before it multiplies: the nested absmax, the weight.

    Its arguments are (A, B, shapeB, absmax, blocksize, quant_type, bias, absmax_8bit, ...).
    """
    first, packed, shape, absmax = args[:4]
    blocks = tensors((args[7:8], kwargs.get("absmax_8bit")))
    scales = tensor_bytes(absmax)
    for nested in blocks:
        yield OpCost(
            "dequantize_blockwise", "dequantize", "fp32", 0, tensor_bytes(nested) + scales, 4 * nested.numel()
        )
        scales = 4 * nested.numel()
    written = prod(shape) * first.element_size()
    yield OpCost(
        "dequantize_4bit", "dequantize", _dtype([first], ()), 0, tensor_bytes(packed) + scales, written
    )
