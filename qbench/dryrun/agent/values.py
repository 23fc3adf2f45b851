"""Values that programs branch on, on a card that computes nothing.

A mode of PyTorch's dispatcher sees each operation. The memory of the null GPU is the host's, so results are
put right where they lie. The rules:

1. Whole numbers and booleans of up to `LIMIT` elements are true where all that they are made of is: the same
   operation runs on the CPU over the same memory. So lengths, masks, packing and sampled tokens are real.
2. A boolean made of floats with more than one element is unknown. It is taken to hold (`>`, `==`, isfinite),
   but for `DOUBTS`, which ask for an exception: isnan, isinf, any, !=, <, <=. No value is infinite.
3. A whole number made of floats is 0, such as argmax and a sampled token. `topk` takes positions in turn, so
   that the experts of a mixture get equal shares; `sort` finds everything in order.
4. `nonzero`, `where(mask)`, `x[mask]` and `masked_select` have the size that the mask says, `bincount`,
   `unique` and `repeat_interleave` that of the values; of a mask over `LIMIT`, every element counts.
5. A float of one element is true where all that it is made of is, such as a constant or a count, else 0, such
   as a loss. Of others, what was copied there is read, else what lies in memory: 0, or what was there before.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .places import caller_of_node

LIMIT = 1 << 19
"""Elements: 4 MiB of int64, which the null GPU copies (NULLGPU_COPY)."""
WHOLE = frozenset((torch.int64, torch.int32, torch.bool, torch.uint8, torch.int16, torch.int8))
REAL = frozenset((torch.float32, torch.bfloat16, torch.float16, torch.float64))
DOUBTS = frozenset(("isnan", "isinf", "ne", "any", "signbit", "le", "lt"))
UNSET = frozenset(
    (
        *("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"),
        *("detach", "lift_fresh", "alias", "resize_", "set_", "record_stream"),
    )
)
"""Operations that say nothing of values."""
INDEXED = frozenset(
    ("index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put")
)
INFINITY = float("inf")
INFINITE = (INFINITY, -INFINITY)
BELOW_INFINITY = (("lt", INFINITY), ("le", INFINITY), ("gt", -INFINITY), ("ge", -INFINITY))

aten = torch.ops.aten
Arguments = tuple[Any, ...]


def on_host(tensor: torch.Tensor) -> torch.Tensor:
    """Return a CPU tensor over the memory of a tensor of the null GPU."""
    if tensor.numel() == 0:
        return torch.empty(tensor.size(), dtype=tensor.dtype)
    last = sum((size - 1) * stride for size, stride in zip(tensor.size(), tensor.stride(), strict=True))
    num_bytes = (last + 1) * tensor.element_size()
    memory = (ctypes.c_char * num_bytes).from_address(tensor.data_ptr())
    return torch.frombuffer(memory, dtype=tensor.dtype).as_strided(tensor.size(), tensor.stride())


def tensors_in(values: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors among arguments, those in lists included."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


def is_known(tensor: Any) -> bool:
    """Return whether a tensor is on the card, of whole numbers, and small."""
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.is_cuda
        and tensor.dtype in WHOLE
        and tensor.numel() <= LIMIT
    )


class Values(TorchDispatchMode):
    """Keeps small whole numbers and booleans true on the null GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.assumed: dict[str, int] = {}
        """How often a boolean of floats was taken to hold or not to hold, by operation."""
        self.work: Any = None
        """Notes each operator, where the work is asked about."""
        self._effects: dict[Any, str] = {}

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Let torch.compile go on under this mode."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Arguments = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        name = getattr(getattr(func, "overloadpacket", None), "__name__", "")
        special = _SPECIAL.get(name) if func.namespace == "aten" else None
        if special is not None:
            made = special(self, args)
            if made is not NotImplemented:
                return made
        if name in INDEXED and any(is_known(index) and _is_mask(index) for index in args[1]):
            args = (args[0], self._without_masks(args[1]), *args[2:])
        node = torch._C._current_autograd_node()
        out = func(*args, **named) if node is None else caller_of_node(node)(func, args, named)
        if self.work is not None:
            self.work.note(func, args, named, out, node)
        if name not in UNSET and func.namespace in ("aten", "prims"):
            outs = tuple(out) if isinstance(out, (tuple, list)) else (out,)
            if any(isinstance(each, torch.Tensor) and _is_small(each) for each in outs):
                self._make_true(func, name, args, named, outs)
        return out

    def _without_masks(self, indices: Any) -> list[Any]:
        """Return indices with each mask as the positions where it holds."""
        flat: list[Any] = []
        for index in indices:
            known = is_known(index) and _is_mask(index)
            flat += self._nonzero(index).unbind(1) if known else [index]
        return flat

    def _nonzero(self, mask: torch.Tensor) -> torch.Tensor:
        return _on_card(on_host(mask).nonzero(), mask.device)

    def _make_true(
        self, func: Any, name: str, args: Arguments, kwargs: dict[str, Any], outs: Arguments
    ) -> None:
        effect = self._effects.get(func)
        if effect is None:
            effect = self._effects[func] = _effect(func)
        if effect == "view":
            return
        sources = [each for each in tensors_in((*args, *kwargs.values())) if each.is_cuda]
        if not any(isinstance(each, torch.Tensor) and each.is_cuda for each in outs):
            if sources and sources[0].dtype in WHOLE and name in ("_to_copy", "copy_", "clone"):
                outs[0].copy_(on_host(sources[0]))
            return
        if any(each.numel() > LIMIT or (each.dtype not in WHOLE and each.numel() > 1) for each in sources):
            if effect == "make":
                self._assume(name, args, outs)
            return
        self._compute(func, args, kwargs, outs if effect == "make" else ())

    def _assume(self, name: str, args: Arguments, outs: Arguments) -> None:
        holds = name not in DOUBTS
        if len(args) > 1 and isinstance(args[1], float) and args[1] in INFINITE:
            holds = (name in ("eq", "ge", "gt", "le", "lt")) is ((name, args[1]) in BELOW_INFINITY)
        for each in outs:
            if not (isinstance(each, torch.Tensor) and each.is_cuda and _is_small(each)):
                continue
            if each.dtype is torch.bool:
                self.assumed[name] = self.assumed.get(name, 0) + 1
                on_host(each).fill_(holds)
            elif name in ("topk", "sort", "argsort"):
                self.assumed[name] = self.assumed.get(name, 0) + 1
                on_host(each).copy_(_in_turn(each, args))
            else:
                on_host(each).zero_()

    def _compute(self, func: Any, args: Arguments, kwargs: dict[str, Any], outs: Arguments) -> None:
        """Do an operation over the same memory on the CPU; what has no CPU kernel stays as it is."""
        named = {key: _moved(value) for key, value in kwargs.items() if key not in _OF_THE_CARD}
        try:
            with torch._C._DisableTorchDispatch():
                made = func(*map(_moved, args), **named)
        except (RuntimeError, TypeError, IndexError, NotImplementedError):
            return
        for out, value in zip(outs, made if isinstance(made, (tuple, list)) else (made,), strict=False):
            if isinstance(out, torch.Tensor) and out.is_cuda and out.shape == value.shape:
                on_host(out).copy_(value)


def _in_turn(indices: torch.Tensor, args: Arguments) -> torch.Tensor:
    """Return positions in a dimension, each as often as any other: topk(x, k, dim), sort(x, dim)."""
    size = args[0].shape[-1] if args[0].dim() else 1
    return torch.arange(indices.numel()).remainder(max(1, size)).view(indices.size())


_OF_THE_CARD = ("pin_memory", "non_blocking")


def _is_mask(tensor: torch.Tensor) -> bool:
    return tensor.dtype in (torch.bool, torch.uint8)


def _is_small(tensor: torch.Tensor) -> bool:
    """Say whether a tensor's values are kept true, or 0 where they are not known."""
    number = tensor.numel()
    return number <= LIMIT and (tensor.dtype in WHOLE or (number == 1 and tensor.dtype in REAL))


def _effect(func: Any) -> str:
    """Return what an operation does: write to an argument, view one, or make a tensor."""
    if any(each.alias_info is not None and each.alias_info.is_write for each in func._schema.arguments):
        return "write"
    return "view" if any(each.alias_info is not None for each in func._schema.returns) else "make"


def _moved(value: Any) -> Any:
    """Return an argument for the CPU, over the same memory."""
    if isinstance(value, torch.Tensor):
        return on_host(value) if value.is_cuda else value
    if isinstance(value, (list, tuple)):
        return [_moved(each) for each in value]
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _item(mode: Values, args: Arguments) -> Any:
    tensor = args[0]
    return on_host(tensor).item() if tensor.is_cuda and tensor.dtype in WHOLE else NotImplemented


def _positions(mode: Values, args: Arguments) -> Any:
    return mode._nonzero(args[0]) if is_known(args[0]) else NotImplemented


def _where(mode: Values, args: Arguments) -> Any:
    """Return the positions by dimension, as torch.where(mask) does."""
    known = len(args) == 1 and is_known(args[0])
    return list(mode._nonzero(args[0]).unbind(1)) if known else NotImplemented


def _sized_by_values(operation: Any) -> Callable[[Values, Arguments], Any]:
    """Return what does an operation on the CPU whose CUDA kernel reads values to size its result."""

    def special(mode: Values, args: Arguments) -> Any:
        if not all(map(is_known, tensors_in(args))):
            return NotImplemented
        with torch._C._DisableTorchDispatch():
            made = operation(*map(_moved, args))
        if isinstance(made, torch.Tensor):
            return _on_card(made, args[0].device)
        return tuple(_on_card(each, args[0].device) for each in made)

    return special


def _on_card(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    made = torch.empty_like(values, device=device)
    on_host(made).copy_(values)
    return made


def _selected(mode: Values, args: Arguments) -> Any:
    if not is_known(args[1]):
        return NotImplemented
    values, mask = torch.broadcast_tensors(args[0], args[1])
    positions = list(mode._nonzero(mask.contiguous()).unbind(1))
    return mode.__torch_dispatch__(aten.index.Tensor, (), (values, positions))


def _scattered_backward(mode: Values, args: Arguments) -> Any:
    selected = _selected(mode, args)
    if selected is NotImplemented:
        return NotImplemented
    wanted = torch.Size(args[2]).numel()
    flat = selected.flatten()
    return torch.nn.functional.pad(flat, (0, wanted - flat.numel())).view(args[2])


_SPECIAL: dict[str, Callable[[Values, Arguments], Any]] = {
    "_local_scalar_dense": _item,
    "nonzero": _positions,
    "argwhere": _positions,
    "where": _where,
    "nonzero_numpy": _where,
    "masked_select": _selected,
    "masked_scatter_backward": _scattered_backward,
    "bincount": _sized_by_values(aten.bincount),
    "repeat_interleave": _sized_by_values(aten.repeat_interleave),
    "_unique2": _sized_by_values(aten._unique2),
    "unique_dim": _sized_by_values(aten.unique_dim),
    "unique_consecutive": _sized_by_values(aten.unique_consecutive),
}
"""Operations whose size or value the host asks for."""
