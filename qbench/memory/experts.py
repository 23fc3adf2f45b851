"""What stacked experts need on meta: grouped matrix products, histograms and a switched-off autocast.

transformers 5 sorts the tokens by expert and multiplies all of them in one grouped product, so that shapes
depend on the number of tokens and of experts per token, not on how tokens are routed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch


def expert_kernels() -> dict[Any, Callable[..., torch.Tensor]]:
    """Return the operators that have no meta kernel, or one for bf16 only, with their output shapes."""
    aten = torch.ops.aten
    return {aten._grouped_mm.default: _grouped_mm, aten.histc.default: _histc}


def _grouped_mm(
    self: torch.Tensor,
    mat2: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Shapes as in torch/_meta_registrations.py, `_meta_grouped_mm_common`; rows are padded to 16 bytes.

    [tokens, k] x [experts, k, n] gives [tokens, n]; [m, tokens] x [tokens, n] one [m, n] for each expert.
    """
    if self.dim() == 2 and mat2.dim() == 2:
        assert offs is not None
        shape: tuple[int, ...] = (offs.shape[0], self.shape[0], mat2.shape[1])
    elif self.dim() == 2:
        shape = (self.shape[0], mat2.shape[2])
    elif mat2.dim() == 2:
        shape = (self.shape[1], mat2.shape[1])
    else:
        shape = (self.shape[0], self.shape[1], mat2.shape[2])
    dtype = out_dtype or self.dtype
    alignment = 16 // dtype.itemsize
    padded = -(-shape[-1] // alignment) * alignment
    strides = (padded, 1) if len(shape) == 2 else (shape[1] * padded, padded, 1)
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")


def _histc(self: torch.Tensor, bins: int = 100, min: float = 0, max: float = 0) -> torch.Tensor:
    return torch.empty(bins, dtype=self.dtype, device="meta")


@contextlib.contextmanager
def autocast_off_on_meta() -> Iterator[None]:
    """Let `torch.autocast("meta", enabled=False)` do nothing, where torch refuses the device.

    peft switches autocast off so around the adapters of stacked experts (tuners/lora/layer.py).
    """
    original: Any = torch.autocast

    def autocast(device_type: str, *args: Any, **kwargs: Any) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if device_type == "meta" else original(device_type, *args, **kwargs)

    torch.autocast = autocast  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        torch.autocast = original  # type: ignore[misc]
