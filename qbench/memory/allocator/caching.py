"""A model of PyTorch's CUDA caching allocator: replay allocations and frees, read what it would reserve.

It follows `DeviceCachingAllocator` of c10/cuda/CUDACachingAllocator.cpp (torch 2.13) for one stream; the
docstrings name the functions there. Left out: further streams and `record_stream`, private pools (CUDA
graphs, MemPool), free-memory callbacks and `roundup_power2_divisions`. `max_non_split_rounding_mb` and
`large_segment_size_mb` keep their defaults. What `blocks` simplifies is said there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from qbench.errors import ScenarioError, nearest
from qbench.memory.allocator.blocks import (
    ALLOCATED,
    FREE,
    LARGE_SEGMENT_BYTES,
    SMALL_BYTES,
    UNLIMITED,
    UNMAPPED,
    Block,
    BlockPool,
    DeviceMemory,
    ExpandablePool,
    SegmentWatcher,
    round_size,
    segment_size,
)
from qbench.units import MIB, format_bytes


def _flag(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError
    return text == "True"


# Key of PYTORCH_ALLOC_CONF -> field, how to read its value, what is allowed.
_ENV_KEYS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "expandable_segments": ("expandable_segments", _flag, "True or False"),
    "max_split_size_mb": ("max_split_size_bytes", lambda text: int(text) * MIB, "a whole number from 20 on"),
    "garbage_collection_threshold": ("garbage_collection_threshold", float, "a number between 0 and 1"),
}


def _items(text: str) -> list[str]:
    """Return the settings of a text; commas within brackets part no settings."""
    compact = "".join(text.split())
    return re.split(r",(?![^\[]*\])", compact) if compact else []


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorConfig:
    """What PYTORCH_ALLOC_CONF sets, as far as it is modelled. Raises ScenarioError on what torch refuses."""

    expandable_segments: bool = False
    max_split_size_bytes: int | None = None
    """Blocks of this size or more are never split; 20 MiB or more. None: every block may be."""
    garbage_collection_threshold: float | None = None
    """Share of the limit, between 0 and 1, above which idle segments are released before new ones are made.

    torch collects only in a process that set a memory fraction below 1 (`setMemoryFraction`), and measures
    against that allowance; the model takes the limit for it. Without a fraction, leave this None.
    """

    def __post_init__(self) -> None:
        split, threshold = self.max_split_size_bytes, self.garbage_collection_threshold
        problems = []
        if split is not None and split < LARGE_SEGMENT_BYTES:
            problems.append(f"max_split_size_mb: {format_bytes(split)} given, allowed: 20 MiB or more")
        if threshold is not None and not 0 < threshold < 1:
            problems.append(f"garbage_collection_threshold: {threshold} given, allowed: above 0 and below 1")
        if problems:
            raise ScenarioError(problems)

    @classmethod
    def from_env_text(cls, text: str) -> AllocatorConfig:
        """Return the settings of a text such as 'expandable_segments:True,max_split_size_mb:128'.

        Raises ScenarioError on a key that is not modelled and on a value that torch would refuse.
        """
        settings: dict[str, Any] = {}
        problems = []
        for item in _items(text):
            key, _, value = item.partition(":")
            if key not in _ENV_KEYS:
                known = nearest(key, _ENV_KEYS) or list(_ENV_KEYS)
                problems.append(f"allocator setting {item!r} is not modelled; allowed: {', '.join(known)}")
                continue
            field, read, allowed = _ENV_KEYS[key]
            try:
                settings[field] = read(value)
            except ValueError:
                problems.append(f"{key}: {value!r} given, allowed: {allowed}")
        if problems:
            raise ScenarioError(problems)
        return cls(**settings)

    @classmethod
    def of_environment(cls, text: str) -> tuple[AllocatorConfig, tuple[str, ...]]:
        """Return what is modelled of the settings that a process has, and the settings that are not."""
        items = _items(text)
        unknown = tuple(item for item in items if item.partition(":")[0] not in _ENV_KEYS)
        return cls.from_env_text(",".join(item for item in items if item not in unknown)), unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorStats:
    """A snapshot of the counters that `torch.cuda.memory_stats` shows for all pools together."""

    allocated_bytes: int
    """Live blocks, each in full: a block too small to split counts more than was asked for."""
    peak_allocated_bytes: int
    requested_bytes: int
    """Live requests, as they were asked for."""
    peak_requested_bytes: int
    reserved_bytes: int
    """Segments, or mapped pages of expandable ones."""
    peak_reserved_bytes: int
    inactive_split_bytes: int
    """Free blocks that share a segment with others, so cannot be released; 0 with expandable segments."""
    peak_inactive_split_bytes: int
    num_active: int
    """Live blocks. With one stream, active and allocated blocks are the same."""
    peak_num_active: int
    num_segments: int
    """Segments of cudaMalloc; torch does not count expandable ones."""
    num_alloc_retries: int
    """Device allocations tried again after the whole cache had been released."""
    num_ooms: int


class OutOfMemory(Exception):
    """A request that did not fit even after the cache was released: a result of a replay, not an error.

    `requested_bytes` is the segment asked of the device, as in torch's message; `free_bytes` is what the
    limit then left. With expandable segments more may be free than asked for, yet less than a page.
    """

    def __init__(self, requested_bytes: int, free_bytes: int) -> None:
        self.requested_bytes = requested_bytes
        self.free_bytes = free_bytes
        super().__init__(
            f"tried to allocate {format_bytes(requested_bytes)}, {format_bytes(free_bytes)} free"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayResult:
    """How a sequence of events ended on a card of the given limit."""

    stats: AllocatorStats
    events: list[tuple[int, int]]
    """The events that were served, each with the bytes of its whole block."""
    fits: Literal["fits", "with_retries", "oom"]
    oom_at_event: int | None = None
    """Index of the event that could not be served; those after it were not replayed."""
    oom_requested_bytes: int | None = None
    oom_free_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One range of device memory, and its blocks in order as (address, bytes, is_allocated)."""

    address: int
    is_large: bool
    blocks: tuple[tuple[int, int, bool], ...]


class CachingAllocator:
    """The allocator of one device and one stream. Handles are the caller's names of live allocations.

    `limit_bytes` is the device memory there is for the allocator: the card less the CUDA context and
    whatever else is on it. None is a card without end. `watch` is told of each segment.
    """

    def __init__(
        self, config: AllocatorConfig, limit_bytes: int | None = None, watch: SegmentWatcher | None = None
    ) -> None:
        self._config = config
        self._device = DeviceMemory(UNLIMITED if limit_bytes is None else limit_bytes)
        if watch is not None:
            self._device.watch = watch
        self._max_split = config.max_split_size_bytes or UNLIMITED
        make_pool = ExpandablePool if config.expandable_segments else BlockPool
        self._small = make_pool(self._device, False, self._max_split)
        self._large = make_pool(self._device, True, self._max_split)
        self._live: dict[int, Block] = {}
        self._allocated = self._peak_allocated = 0
        self._requested = self._peak_requested = 0
        self._inactive_split = self._peak_inactive_split = 0
        self._peak_num_active = self._num_alloc_retries = self._num_ooms = 0

    def malloc(self, handle: int, num_bytes: int) -> int:
        """Allocate so many bytes, at least 1, under a new handle; return the address (`malloc`).

        Raises OutOfMemory, with the allocator still usable, when the limit leaves no room.
        """
        if num_bytes <= 0 or handle in self._live:
            raise ValueError(f"malloc({handle}, {num_bytes}): bytes must be positive and the handle new")
        size = round_size(num_bytes)
        pool = self._small if size <= SMALL_BYTES else self._large
        block = pool.find(size) or self._new_block(pool, size)
        inactive_split = 0 if block.is_whole_segment else -block.size
        if pool.should_split(block, size):
            rest = block.cut(size, FREE)
            pool.insert(rest)
            inactive_split += rest.size
        block.state = ALLOCATED
        block.requested = num_bytes
        self._live[handle] = block
        self._count(block.size, num_bytes, inactive_split)
        return block.address

    def free(self, handle: int) -> None:
        """Return an allocation to its pool (`free_block`). Raises ValueError on an unknown handle."""
        block = self._live.pop(handle, None)
        if block is None:
            raise ValueError(f"free({handle}): no live allocation has this handle")
        pool, size = block.pool, block.size
        block.state = FREE
        inactive_split = -pool.absorb_neighbours(block)
        pool.insert(block)
        if not block.is_whole_segment:
            inactive_split += block.size
        self._count(-size, -block.requested, inactive_split)

    def block_bytes(self, handle: int) -> int:
        """Return the size of a live allocation's block, which may be larger than what was asked for."""
        return self._live[handle].size

    def empty_cache(self) -> None:
        """Release every segment, or page of an expandable one, that holds nothing live (`emptyCache`)."""
        self._large.release_all()
        self._small.release_all()

    @property
    def stats(self) -> AllocatorStats:
        """The counters as they are now."""
        return AllocatorStats(
            allocated_bytes=self._allocated,
            peak_allocated_bytes=self._peak_allocated,
            requested_bytes=self._requested,
            peak_requested_bytes=self._peak_requested,
            reserved_bytes=self._device.reserved_bytes,
            peak_reserved_bytes=self._device.peak_reserved_bytes,
            inactive_split_bytes=self._inactive_split,
            peak_inactive_split_bytes=self._peak_inactive_split,
            num_active=len(self._live),
            peak_num_active=self._peak_num_active,
            num_segments=self._device.num_segments,
            num_alloc_retries=self._num_alloc_retries,
            num_ooms=self._num_ooms,
        )

    def segments(self) -> tuple[Segment, ...]:
        """Return what is reserved, by address; of an expandable segment each mapped range (`snapshot`)."""
        free = [block for pool in (self._small, self._large) for _, _, block in pool.free]
        heads = [
            block
            for block in (*free, *self._live.values())
            if block.prev is None or block.prev.state == UNMAPPED
        ]
        return tuple(_segment(head) for head in sorted(heads, key=lambda block: block.address))

    def _count(self, allocated: int, requested: int, inactive_split: int) -> None:
        self._allocated += allocated
        self._requested += requested
        # Every event comes here, and comparing is faster than calling max().
        if self._allocated > self._peak_allocated:
            self._peak_allocated = self._allocated
        if self._requested > self._peak_requested:
            self._peak_requested = self._requested
        if len(self._live) > self._peak_num_active:
            self._peak_num_active = len(self._live)
        if not self._config.expandable_segments:
            self._inactive_split += inactive_split
            if self._inactive_split > self._peak_inactive_split:
                self._peak_inactive_split = self._inactive_split

    def _new_block(self, pool: BlockPool, size: int) -> Block:
        """The part of `malloc` after a search in vain: collect garbage, allocate, release, allocate again."""
        threshold, limit = self._config.garbage_collection_threshold, self._device.limit_bytes
        if threshold is not None:
            self._large.collect_garbage(int(threshold * limit))
        block = pool.new_block(size)
        if block is None and self._max_split != UNLIMITED and pool.release_oversize(size):
            block = pool.new_block(size)
        if block is None:
            self.empty_cache()
            self._num_alloc_retries += 1
            block = pool.new_block(size)
        if block is None:
            self._num_ooms += 1
            raise OutOfMemory(segment_size(size), limit - self._device.reserved_bytes)
        return block


def _segment(head: Block) -> Segment:
    blocks = []
    block: Block | None = head
    while block is not None and block.state != UNMAPPED:
        blocks.append((block.address, block.size, block.state == ALLOCATED))
        block = block.next
    return Segment(address=head.address, is_large=head.pool.is_large, blocks=tuple(blocks))


def replay(
    events: Iterable[tuple[int, int]],
    config: AllocatorConfig,
    limit_bytes: int | None = None,
    emptied: Collection[int] = (),
) -> ReplayResult:
    """Return how the events, (handle, bytes) with bytes negative on a free, would go on a card of the limit.

    Before each event whose number is in `emptied` the program empties the cache.

    The events are those of a ledger; requested bytes are then the ledger's, rounded up to 512 B already.
    """
    allocator = CachingAllocator(config, limit_bytes)
    malloc, free, live = allocator.malloc, allocator.free, allocator._live
    served: list[tuple[int, int]] = []
    for index, (handle, num_bytes) in enumerate(events):
        if index in emptied:
            allocator.empty_cache()
        if num_bytes < 0:
            served.append((handle, -live[handle].size))
            free(handle)
            continue
        try:
            malloc(handle, num_bytes)
        except OutOfMemory as out:
            return ReplayResult(
                stats=allocator.stats,
                events=served,
                fits="oom",
                oom_at_event=index,
                oom_requested_bytes=out.requested_bytes,
                oom_free_bytes=out.free_bytes,
            )
        served.append((handle, live[handle].size))
    stats = allocator.stats
    return ReplayResult(
        stats=stats, events=served, fits="with_retries" if stats.num_alloc_retries else "fits"
    )
