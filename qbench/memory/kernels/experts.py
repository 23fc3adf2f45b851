"""What stacked experts need on meta: grouped matrix products, histograms and a switched-off autocast.

transformers 5 sorts the tokens by expert and multiplies all of them in one grouped product, so that shapes
depend on the number of tokens and of experts per token, not on how tokens are routed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from peft.utils.other import transpose

from qbench.memory.kernels.autocast import without_autocast


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
def peft_as_on(device: str) -> Iterator[None]:
    """Let peft's adapters of parameters treat meta as `device` (cpu or cuda).

    They switch autocast off for the tensor's device, which torch refuses for meta (tuners/lora/layer.py,
    `_LoraFactorsProxy`), and on the CPU they multiply 16-bit factors in fp32 (`Linear.get_delta_weight`).
    """
    autocast: Any = torch.autocast
    delta_weight: Any = Linear.get_delta_weight
    torch.autocast = functools.partial(_autocast, autocast)  # type: ignore[misc, assignment]
    if device == "cpu":
        Linear.get_delta_weight = functools.partialmethod(_delta_weight_on_cpu, delta_weight)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        torch.autocast = autocast  # type: ignore[misc]
        Linear.get_delta_weight = delta_weight  # type: ignore[method-assign]


def _autocast(
    original: Any, device_type: str, *args: Any, **kwargs: Any
) -> contextlib.AbstractContextManager[Any]:
    """Return `torch.autocast` of a device; on meta it is only ever asked to be off."""
    context: contextlib.AbstractContextManager[Any] = (
        without_autocast() if device_type == "meta" else original(device_type, *args, **kwargs)
    )
    return context


def _delta_weight_on_cpu(layer: Any, original: Any, adapter: str) -> torch.Tensor:
    first, second = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    if not second.is_meta or second.dtype not in (torch.float16, torch.bfloat16):
        value: torch.Tensor = original(layer, adapter)
        return value
    first, second_in_fp32 = first.float(), second.float()
    product = transpose(second_in_fp32 @ first, layer.fan_in_fan_out) * layer.scaling[adapter]
    return product.to(second.dtype)  # type: ignore[no-any-return]
