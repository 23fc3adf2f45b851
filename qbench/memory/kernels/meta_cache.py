"""Remember what meta kernels return: layers repeat, so an operator is asked the same hundreds of times.

A meta kernel of torch is Python code that takes some 100 microseconds to work out shape, strides and dtype.
An operator that neither writes to its inputs nor returns a view of them is a function of the metadata of
its arguments, so its answer is kept and given again as new empty tensors.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

MAX_ENTRIES = 100_000
"""More is a sweep over very many shapes; forgetting all then costs little."""

Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]

_UNCACHEABLE = object()


class UnhashableError(Exception):
    """An argument of a kind that the cache does not know."""


class MetaKernelCache:
    """Answers operators on meta tensors from memory where that is safe."""

    def __init__(self) -> None:
        self._pure: dict[Any, bool] = {}
        self._answers: dict[Hashable, Any] = {}

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return what `func(*args, **kwargs)` returns; outputs are new tensors on meta."""
        pure = self._pure.get(func)
        if pure is None:
            pure = self._pure[func] = _is_pure(func)
        if not pure:
            return func(*args, **kwargs)
        try:
            key = (func, metadata_key(args), metadata_key(tuple(kwargs.items())) if kwargs else None)
        except UnhashableError:
            return func(*args, **kwargs)
        answer = self._answers.get(key)
        if answer is None:
            out = func(*args, **kwargs)
            if len(self._answers) >= MAX_ENTRIES:
                self._answers.clear()
            # Some operators (aten._unsafe_view) return a view that their schema does not own up to.
            shared = _storages(out) & _storages((args, tuple(kwargs.values())))
            self._answers[key] = _UNCACHEABLE if shared else _recipe(out)
            return out
        if answer is _UNCACHEABLE:
            return func(*args, **kwargs)
        return _made(answer)


def _is_pure(func: Any) -> bool:
    """Say whether an operator's schema promises new outputs and untouched inputs."""
    schema = func._schema
    return bool(schema.returns) and all(
        argument.alias_info is None for argument in (*schema.arguments, *schema.returns)
    )


def metadata_key(value: Any) -> Hashable:
    """Return what an operator's answer depends on, of one argument: metadata of tensors, other values.

    Raises UnhashableError for a value of an unknown kind.
    """
    if isinstance(value, torch.Tensor):
        return (value.shape, value.stride(), value.dtype, value.device.type)
    if isinstance(value, (tuple, list)):
        return tuple([metadata_key(item) for item in value])
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        # 1, 1.0 and True are equal and hash alike, but may promote to other dtypes.
        return (type(value), value)
    if isinstance(value, (torch.layout, torch.memory_format)):
        return value
    raise UnhashableError


def _storages(value: Any) -> set[int]:
    if isinstance(value, torch.Tensor):
        return {value.untyped_storage()._cdata}
    if isinstance(value, (tuple, list)):
        return {storage for item in value for storage in _storages(item)}
    return set()


def _recipe(out: Any) -> Any:
    """Return how to make the outputs again: a recipe, a list of them, or that this cannot be done."""
    if isinstance(out, torch.Tensor):
        return _tensor_recipe(out)
    if isinstance(out, (tuple, list)):
        recipes = [None if item is None else _recipe(item) for item in out]
        return _UNCACHEABLE if _UNCACHEABLE in recipes else recipes
    return _UNCACHEABLE


def _tensor_recipe(out: torch.Tensor) -> Any:
    remade = torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device="meta")
    if out.device.type != "meta" or out.untyped_storage().nbytes() != remade.untyped_storage().nbytes():
        return _UNCACHEABLE
    return (tuple(out.shape), out.stride(), out.dtype)


def _made(answer: Any) -> Any:
    if isinstance(answer, tuple):
        shape, stride, dtype = answer
        return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    return [None if recipe is None else _made(recipe) for recipe in answer]
