"""The tensors that a built model holds, with what each is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch


def model_tensors(model: Any) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Yield (name, category, tensor) for parameters, buffers and quantization state of a model."""
    for name, parameter in model.named_parameters():
        yield name, ("adapters" if "lora_" in name else "weights"), parameter
    for name, buffer in model.named_buffers():
        yield name, "weights", buffer
    for name, module in model.named_modules():
        weight = module._parameters.get("weight", module._parameters.get("original"))
        # A sharded weight has lost its state, which the layer keeps beside it.
        owner = module if weight is None or _is_sharded(weight) else weight
        for tensor in quantization_state(owner):
            yield f"{name}.weight", "quant_state", tensor


def _is_sharded(weight: torch.Tensor) -> bool:
    return hasattr(weight, "full_tensor")


def quantization_state(weight: Any) -> Iterator[torch.Tensor]:
    """Yield what bitsandbytes keeps beside a packed weight: absmax, code book, nested state, int8 scales."""
    state = getattr(weight, "quant_state", None)
    nested = getattr(state, "state2", None)
    candidates = (
        getattr(state, "absmax", None),
        getattr(state, "code", None),
        getattr(state, "offset", None),
        getattr(nested, "absmax", None),
        getattr(nested, "code", None),
        getattr(weight, "SCB", None),
    )
    yield from (tensor for tensor in candidates if isinstance(tensor, torch.Tensor))
