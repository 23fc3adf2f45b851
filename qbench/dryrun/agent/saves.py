"""Weights that a program saves before it ends: a hole in place of gigabytes of zeros.

Only files of safetensors whose tensors are all on the card and large: their values are unknown anyway. The
file has a true header, so that what reads it again finds every tensor.
"""

from __future__ import annotations

import functools
import os
from typing import Any

LARGE = 64 << 20
"""Bytes; adapters are saved as they are."""


def save_holes(safetensors: Any) -> None:
    """Let `safetensors.torch.save_file` leave out the content of large files."""
    plain = safetensors.save_file

    @functools.wraps(plain)
    def save_file(tensors: Any, filename: Any, metadata: Any = None, *args: Any, **kwargs: Any) -> None:
        from .hollow import hole, is_storable, write_shard

        whole = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if whole < LARGE or not all(map(is_storable, tensors.values())):
            plain(tensors, filename, metadata, *args, **kwargs)
        else:
            write_shard(os.fspath(filename), [hole(*item) for item in tensors.items()], metadata)

    safetensors.save_file = save_file
