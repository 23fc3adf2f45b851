"""Remember what meta kernels return: layers repeat, so an operator is asked the same hundreds of times.

A meta kernel of torch is Python code that takes some 100 microseconds to work out shape, strides and dtype.
Whether an operator returns new tensors or works in place, its answer is a function of the metadata of its
arguments. So new tensors are made again as empty ones; and an operator that only writes to its arguments, and
left their metadata as they were, has nothing to do on meta when it is called alike again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

MAX_ENTRIES = 100_000
"""More is a sweep over very many shapes; forgetting all then costs little."""

Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]

Written = Callable[[Any, Any], Any]
"""Gives, from an operator's arguments, what it returns: the argument that it writes to, or None."""

_UNCACHEABLE = object()

_IN_PLACE_OF = {torch.ops.aten._unsafe_view.default: torch.ops.aten.view.default}
"""What gives the same on meta sooner: both return the same memory in another shape."""

_GIVES_OTHER_MEMORY = ("set_", "resize", "_resize")
"""How names of operators begin that put other memory in the place of what they write to."""


class UnhashableError(Exception):
    """An argument of a kind that the cache does not know."""


class MetaKernelCache:
    """Answers operators on meta tensors from memory where that is safe."""

    def __init__(self) -> None:
        self._kinds: dict[Any, Written | bool] = {}
        self._answers: dict[Hashable, Any] = {}

    def call(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, Hashable]:
        """Return what `func(*args, **kwargs)` returns, and the key of the call; outputs are new on meta.

        Calls of one key have the same metadata. The key is None where the arguments have none.
        """
        func = _IN_PLACE_OF.get(func, func)
        kind = self._kinds.get(func)
        if kind is None:
            kind = self._kinds[func] = _kind(func)
        try:
            key = call_key(func, args, kwargs)
        except UnhashableError:
            return func(*args, **kwargs), None
        if kind is False:
            return func(*args, **kwargs), key
        answer = self._answers.get(key)
        if answer is None:
            if len(self._answers) >= MAX_ENTRIES:
                self._answers.clear()
            given = (args, tuple(kwargs.values()))
            out = func(*args, **kwargs)
            if kind is True:
                # Some operators (aten._reshape_alias) return a view that their schema does not own up to.
                self._answers[key] = _UNCACHEABLE if _storages(out) & _storages(given) else _recipe(out)
            else:
                # What is on the host, as counters of steps, is written to in earnest.
                unchanged = _all_on_meta(given) and call_key(func, args, kwargs) == key
                self._answers[key] = kind if unchanged and out is kind(args, kwargs) else _UNCACHEABLE
            return out, key
        if answer is _UNCACHEABLE:
            return func(*args, **kwargs), key
        return _made(answer) if kind is True else answer(args, kwargs), key


def _kind(func: Any) -> Written | bool:
    """Return whether an operator's schema promises new outputs and untouched inputs, or what it writes to.

    False where it does neither, as for views.
    """
    schema = func._schema
    aliases = [each.alias_info for each in (*schema.arguments, *schema.returns)]
    if all(alias is None for alias in aliases):
        return bool(schema.returns)
    name = schema.name.rpartition("::")[2]
    if name.startswith(_GIVES_OTHER_MEMORY) or len(schema.returns) > 1:
        return False
    if not all(alias is None or alias.is_write for alias in aliases):
        return False
    if not schema.returns:
        return lambda args, kwargs: None
    returned = schema.returns[0].alias_info
    if returned is None:
        return False
    index, name = next(
        (index, argument.name)
        for index, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.before_set == returned.before_set
    )
    return lambda args, kwargs: args[index] if index < len(args) else kwargs[name]


def call_key(func: Any, args: Any, kwargs: Any) -> Hashable:
    """Return what the answer of a call depends on. Raises UnhashableError as `metadata_key` does."""
    return func, metadata_key(args), metadata_key(tuple(kwargs.items())) if kwargs else None


def metadata_key(value: Any) -> Hashable:
    """Return what an operator's answer depends on, of one argument: metadata of tensors, other values.

    Raises UnhashableError for a value of an unknown kind.
    """
    if isinstance(value, torch.Tensor):
        return (value.shape, value.stride(), value.dtype, "meta" if value.is_meta else value.device.type)
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


def _all_on_meta(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.is_meta
    return not isinstance(value, (tuple, list)) or all(map(_all_on_meta, value))


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
