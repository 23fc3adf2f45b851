"""A model of PyTorch's CUDA caching allocator: replay allocations and frees, read what it would reserve.

It follows `DeviceCachingAllocator` of c10/cuda/CUDACachingAllocator.cpp and the constants of
c10/core/AllocatorConfig.h (torch 2.13). Docstrings name the function there that each part follows.

Left out: a second stream and `record_stream`, private pools (CUDA graphs, MemPool), free-memory callbacks,
`roundup_power2_divisions`, `max_non_split_rounding_mb` and `large_segment_size_mb` (their defaults are used).
Simplified: addresses are handed out in rising order and never again, where cudaMalloc may reuse one, so a
tie between free blocks of equal size in different segments may fall otherwise on a card. An expandable
segment has room without end, where CUDA reserves 9/8 of the card, so each pool has exactly one.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from qbench.errors import ScenarioError, nearest
from qbench.units import MIB, format_bytes, round_up

MIN_BLOCK_BYTES = 512
"""kMinBlockSize: every block is a multiple of this."""
SMALL_BYTES = MIB
"""kSmallSize: the largest request of the small pool."""
SMALL_SEGMENT_BYTES = 2 * MIB
"""kSmallBuffer: a segment of the small pool, and the page of its expandable segment."""
LARGE_SEGMENT_BYTES = 20 * MIB
"""large_segment_size: a segment for requests under 10 MiB, and the page of the large expandable segment."""
MIN_LARGE_BYTES = 10 * MIB
"""kMinLargeAlloc: from here on a request has a segment of its own size."""
ROUND_LARGE_BYTES = 2 * MIB
"""kRoundLarge: the multiple of such segments."""
OVERSIZE_SLACK_BYTES = 20 * MIB
"""max_non_split_rounding_size: what an oversize block may exceed a request by, exclusive."""

_UNLIMITED = sys.maxsize
_ADDRESS_SPACE = LARGE_SEGMENT_BYTES << 30
"""Room of an expandable segment; a multiple of both page sizes, so that addresses say where pages begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorConfig:
    """What PYTORCH_ALLOC_CONF sets, as far as it is modelled. Raises ScenarioError on values torch refuses."""

    expandable_segments: bool = False
    max_split_size_bytes: int | None = None
    """Blocks of this size or more are never split; at least 20 MiB. None: every block may be."""
    garbage_collection_threshold: float | None = None
    """Share of the limit, between 0 and 1, above which idle segments are released early.

    torch does so only in a process that has set a memory fraction below 1 (`setMemoryFraction`); the
    model takes `limit_bytes` for that allowance. Leave it None for a process without a fraction.
    """

    def __post_init__(self) -> None:
        split, threshold = self.max_split_size_bytes, self.garbage_collection_threshold
        problems = []
        if split is not None and split < LARGE_SEGMENT_BYTES:
            problems.append(f"max_split_size_mb: {format_bytes(split)} given; write 20 (MiB) or more")
        if threshold is not None and not 0 < threshold < 1:
            problems.append(f"garbage_collection_threshold: {threshold} given; write a number between 0 and 1")
        if problems:
            raise ScenarioError(problems)

    @classmethod
    def from_env_text(cls, text: str) -> AllocatorConfig:
        """Return the settings of a text such as 'expandable_segments:True,max_split_size_mb:128'.

        Raises ScenarioError on a key that is not modelled and on a value that torch would refuse.
        """
        settings: dict[str, str] = {}
        problems = []
        compact = "".join(text.split())
        for item in compact.split(",") if compact else ():
            key, _, value = item.partition(":")
            settings[key] = value
            if key not in _ENV_KEYS:
                hint = ", ".join(nearest(key, _ENV_KEYS)) or ", ".join(_ENV_KEYS)
                problems.append(f"allocator setting {item!r} is not modelled; write key:value with {hint}")
            elif not _ENV_KEYS[key](value):
                problems.append(f"{key}: {value!r} given; write such as {_ENV_EXAMPLES[key]}")
        if problems:
            raise ScenarioError(problems)
        split = settings.get("max_split_size_mb")
        threshold = settings.get("garbage_collection_threshold")
        return cls(
            expandable_segments=settings.get("expandable_segments") == "True",
            max_split_size_bytes=None if split is None else int(split) * MIB,
            garbage_collection_threshold=None if threshold is None else float(threshold),
        )
