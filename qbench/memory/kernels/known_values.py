"""Values of small tensors on meta, which models that see images branch on: token ids, grids, masks.

Each known meta storage has a twin on the CPU. An operator whose inputs are all known runs on the twins, too,
and what it makes is known then; an operator that writes what is unknown into a known storage makes it
unknown. So lengths, positions and masks are those of a real run, while all else has shapes alone.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

MOST_WHOLE, MOST_FLOATS = 1 << 20, 1 << 15
"""Elements of a tensor that is followed: of whole numbers and booleans, and of floats."""

aten: Any = torch.ops.aten

_FILLED = {"zeros_like": 0, "new_zeros": 0, "ones_like": 1, "new_ones": 1}
"""Operators that take a tensor for its shape only, and what they fill theirs with."""

_DATA_DEPENDENT = frozenset(
    {
        aten.nonzero.default,
        aten.masked_select.default,
        aten.repeat_interleave.Tensor,
        aten.unique_consecutive.default,
        aten._unique2.default,
    }
)
"""Operators whose outputs have a size that depends on values, which meta refuses."""

_UNSET = frozenset(("empty", "empty_like", "new_empty", "empty_strided", "rand", "randn", "native_dropout"))


class KnownValues:
    """The twins of meta tensors whose values are known."""

    def __init__(self) -> None:
        self._twins: dict[int, tuple[Any, torch.UntypedStorage]] = {}

    def learn(self, tensor: torch.Tensor, values: torch.Tensor) -> None:
        """Know the values of a meta tensor from now on; `values` has its shape, on the CPU."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        with _disable_current_modes():
            twin = torch.UntypedStorage(storage.nbytes())
            _view(twin, tensor).copy_(values)
        self._twins[key] = (weakref.ref(storage, functools.partial(self._forget, key)), twin)

    def _forget(self, key: int, _: Any = None) -> None:
        self._twins.pop(key, None)

    def of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return the values of a tensor, over the memory of its twin; None where they are not known."""
        if tensor.device.type != "meta":
            return tensor
        known = self._twins.get(tensor.untyped_storage()._cdata)
        if known is None:
            return None
        with _disable_current_modes():
            return _view(known[1], tensor)

    def answer(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Return what leaves meta or has a size that depends on values; NotImplemented for all else."""
        if func is aten._local_scalar_dense.default:
            value = self.of(args[0])
            return NotImplemented if value is None else value.item()
        if func is aten._to_copy.default and torch.device(kwargs.get("device") or "meta").type == "cpu":
            value = self.of(args[0])
            return NotImplemented if value is None else value.to(kwargs.get("dtype") or value.dtype).clone()
        if func in _DATA_DEPENDENT:
            made = self._computed(func, args, kwargs)
            return NotImplemented if made is None else self._as_meta(made)
        return NotImplemented

    def numbers(self, data: Any) -> Any:
        """Return nested lists with numbers in place of known tensors, None where one is unknown."""
        if isinstance(data, torch.Tensor):
            value = self.of(data)
            return None if value is None else value.tolist()
        if isinstance(data, (list, tuple)):
            each = [self.numbers(item) for item in data]
            return None if None in each else each
        return data

    def positions(self, indices: Any) -> list[Any]:
        """Return indices with each known mask as the positions where it holds, one index a dimension."""
        flat: list[Any] = []
        for index in indices:
            mask = self.of(index) if isinstance(index, torch.Tensor) and index.dtype == torch.bool else None
            if mask is None:
                flat.append(index)
            else:
                with _disable_current_modes():
                    found = mask.nonzero()
                flat += self._as_meta(found).unbind(1)
        return flat

    def follow(self, func: Any, args: Any, kwargs: Mapping[str, Any], out: Any) -> None:
        """Take down what an operator that ran on meta did to values."""
        outs = [each for each in tensors_in((out,)) if each.device.type == "meta"]
        if not outs:
            return
        written = [
            value
            for argument, value in zip(func._schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        if written:
            self._write(func, args, kwargs, list(tensors_in(written)))
        elif not _is_view(func) and all(map(_is_small, outs)):
            name = func.overloadpacket.__name__
            if name in _UNSET:
                return
            if name in _FILLED:
                for each in outs:
                    self.learn(each, torch.tensor(_FILLED[name]))
                return
            made = self._computed(func, args, kwargs)
            if made is None and func is aten.sum.dim_IntList and args[0].dtype == torch.bool:
                made = torch.zeros(out.shape, dtype=out.dtype)  # SmolVLM counts pixels that are exactly 0.
            for each, value in zip(outs, tensors_in((made,)), strict=False):
                if each.shape == value.shape:
                    self.learn(each, value)

    def _write(self, func: Any, args: Any, kwargs: Mapping[str, Any], written: list[torch.Tensor]) -> None:
        name = func.overloadpacket.__name__
        for each in written:
            is_whole = each.numel() == each.untyped_storage().nbytes() // each.element_size()
            if self.of(each) is None and is_whole and _is_small(each) and name in ("copy_", "fill_", "zero_"):
                self.learn(each, torch.zeros((), dtype=each.dtype))
        if any(self.of(each) is not None for each in written) and self._computed(func, args, kwargs) is None:
            for each in written:
                if each.device.type == "meta":
                    self._forget(each.untyped_storage()._cdata)

    def _computed(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Return what an operator makes of known values, None where any is unknown or the CPU refuses."""
        try:
            moved = [self._moved(value) for value in args]
            named = {key: self._moved(value) for key, value in kwargs.items()}
            with _disable_current_modes(), torch.no_grad():
                return func(*moved, **named)
        except (_UnknownError, RuntimeError, IndexError, NotImplementedError):
            return None

    def _moved(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if (found := self.of(value)) is None:
                raise _UnknownError
            return found
        if isinstance(value, (list, tuple)):
            return [self._moved(each) for each in value]
        return torch.device("cpu") if isinstance(value, torch.device) else value

    def _as_meta(self, made: Any) -> Any:
        if isinstance(made, torch.Tensor):
            twin = torch.empty(made.shape, dtype=made.dtype, device="meta")
            self.learn(twin, made)
            return twin
        return tuple(map(self._as_meta, made))


class Literals(TorchFunctionMode):
    """Knows the values of tensors that are made from Python's numbers, which no operator shows."""

    def __init__(self, values: KnownValues, made: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self._values, self._made = values, made

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func in (torch.tensor, torch.as_tensor) and out.is_meta and self._values.of(out) is None:
            self._made(out)
            numbers = self._values.numbers(args[0])
            if numbers is not None:
                self._values.learn(out, torch.tensor(numbers))
        return out


class _UnknownError(Exception):
    """A tensor whose values are not known."""


def _view(storage: torch.UntypedStorage, like: torch.Tensor) -> torch.Tensor:
    empty = torch.empty(0, dtype=like.dtype)
    return empty.set_(storage, like.storage_offset(), like.size(), like.stride())


def tensors_in(values: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors among values, those in lists included."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


def is_on_host(args: Any) -> bool:
    """Say whether an operator works on the CPU alone, as models do with sizes before they use them."""
    given = list(tensors_in(args))
    return bool(given) and all(each.device.type == "cpu" for each in given)


def _is_small(tensor: torch.Tensor) -> bool:
    return tensor.numel() <= (MOST_FLOATS if tensor.is_floating_point() else MOST_WHOLE)


@functools.cache
def _is_view(func: Any) -> bool:
    return any(each.alias_info is not None for each in func._schema.returns)
