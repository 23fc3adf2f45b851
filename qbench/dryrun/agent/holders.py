"""Addresses of memory by what holds it: parameters, gradients, optimizer state."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import torch

Found = dict[str, set[int]]
KINDS = ("weights", "quant_state", "adapters", "gradients", "optimizer")
ADAPTER = ("lora_", "adapter", "ia3_", "vera_", "modules_to_save")
"""What parameters' names of peft hold that are not the base model's."""
QUANT_STATE = ("absmax", "code", "offset", "state2", "SCB", "CB", "nested_absmax")


def address(tensor: Any) -> int | None:
    """Return where a tensor's memory begins; None for one that is not on a card."""
    tensor = getattr(tensor, "_local_tensor", tensor)
    if not isinstance(tensor, torch.Tensor) or not tensor.is_cuda:
        return None
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):
        return None


def addresses(tensors: Iterator[Any]) -> set[int]:
    """Return where those tensors that are on a card begin."""
    return {found for tensor in tensors if (found := address(tensor)) is not None}


def all_holders(optimizer: Any) -> tuple[Found, dict[str, int]]:
    """Return the addresses of all modules in this process by kind, and the numbers of parameters."""
    is_frozen = gc.get_freeze_count() > 0
    gc.unfreeze()  # What a program froze, as Unsloth does, is not listed.
    # Not isinstance, which would ask proxies for their class.
    modules = [each for each in gc.get_objects() if issubclass(type(each), torch.nn.Module)]
    if is_frozen:
        gc.freeze()
    inner = {id(child) for module in modules for child in module._modules.values()}
    found: Found = {kind: set() for kind in KINDS}
    seen: dict[int, Any] = {}
    for root in (module for module in modules if id(module) not in inner):
        for name, parameter in root.named_parameters():
            seen[id(parameter)] = parameter
            kind = "adapters" if any(word in name for word in ADAPTER) else "weights"
            found[kind] |= addresses(iter((parameter,)))
            found["quant_state"] |= addresses(_quant_state(parameter))
        found["weights"] |= addresses(root.buffers())
    # A module that holds itself by way of another has no root above it.
    for parameter in (each for module in modules for each in module._parameters.values()):
        if parameter is not None and id(parameter) not in seen:
            seen[id(parameter)] = parameter
            found["weights"] |= addresses(iter((parameter,)))
            found["quant_state"] |= addresses(_quant_state(parameter))
    found["weights"] -= found["adapters"]
    found["gradients"] = addresses(parameter.grad for parameter in seen.values())
    if optimizer is not None:
        found["gradients"] |= gradients(optimizer)
        found["optimizer"] = optimizer_state(optimizer)
    return found, _counts(seen.values())


def gradients(optimizer: Any) -> set[int]:
    """Return where the gradients are of all that an optimizer updates."""
    groups = getattr(optimizer, "param_groups", ())
    return addresses(parameter.grad for group in groups for parameter in group["params"])


def optimizer_state(optimizer: Any) -> set[int]:
    """Return where the state of an optimizer is, through what is wrapped around it."""
    for _ in range(4):
        state = getattr(optimizer, "state", None)
        if isinstance(state, dict):
            return addresses(value for values in state.values() for value in _values(values))
        optimizer = getattr(optimizer, "optimizer", None)
    return set()


def _values(state: Any) -> Iterator[Any]:
    yield from state.values() if isinstance(state, dict) else ()


def _quant_state(parameter: Any) -> Iterator[Any]:
    holders = [parameter, getattr(parameter, "quant_state", None)]
    holders.append(getattr(holders[1], "state2", None))
    for holder in holders:
        if holder is not None:
            yield from (getattr(holder, name, None) for name in QUANT_STATE if holder is not parameter)
    yield from (vars(parameter).get(name) for name in ("SCB", "CB"))


def _counts(parameters: Any) -> dict[str, int]:
    counts = {"total_params": 0, "trainable_params": 0}
    for parameter in parameters:
        shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
        number = parameter.numel() if shape is None else torch.Size(shape).numel()
        counts["total_params"] += number
        counts["trainable_params"] += number if parameter.requires_grad else 0
    return counts
