"""Names of dtypes in settings, and what torch calls them."""

from __future__ import annotations

import torch

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def base_dtype(precision: str) -> torch.dtype:
    """Return the dtype of unquantized weights: the precision itself, bf16 beside a quantized base."""
    return DTYPES.get(precision, torch.bfloat16)
