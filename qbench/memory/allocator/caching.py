"""A model of PyTorch's CUDA caching allocator: replay allocations and frees, read what it would reserve.

It follows `DeviceCachingAllocator` of c10/cuda/CUDACachingAllocator.cpp (torch 2.13); the docstrings name the
functions there. Each stream has pools of its own. Left out: `record_stream`, which neither FSDP2 nor DDP's
NCCL groups (since torch 2.8) call, private pools (CUDA
graphs, MemPool), free-memory callbacks and `roundup_power2_divisions`. `max_non_split_rounding_mb` and
`large_segment_size_mb` keep their defaults. What `blocks` simplifies is said there.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from qbench.memory.allocator.blocks import (
    ALLOCATED,
    FREE,
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
from qbench.memory.allocator.config import AllocatorConfig
from qbench.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorStats:
    """A snapshot of the counters that `torch.cuda.memory_stats` shows for all pools together."""

    allocated_bytes: int
    """Live blocks, each in full: a block too small to split counts more than requested."""
    peak_allocated_bytes: int
    requested_bytes: int
    """Live requests, as requested."""
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
    """The allocator of one device. Handles are the caller's names of live allocations.

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
        self._pools: dict[int, tuple[BlockPool, BlockPool]] = {}
        self._live: dict[int, Block] = {}
        self._allocated = self._peak_allocated = 0
        self._requested = self._peak_requested = 0
        self._inactive_split = self._peak_inactive_split = 0
        self._peak_num_active = self._num_alloc_retries = self._num_ooms = 0

    def _pools_of(self, stream: int) -> tuple[BlockPool, BlockPool]:
        """Return the small and the large pool of a stream, made when it first asks."""
        if stream not in self._pools:
            make_pool = ExpandablePool if self._config.expandable_segments else BlockPool
            self._pools[stream] = (
                make_pool(self._device, False, self._max_split),
                make_pool(self._device, True, self._max_split),
            )
        return self._pools[stream]

    def malloc(self, handle: int, num_bytes: int, stream: int = 0) -> int:
        """Allocate so many bytes, at least 1, under a new handle; return the address (`malloc`).

        Raises OutOfMemory, with the allocator still usable, when the limit leaves no room.
        """
        if num_bytes <= 0 or handle in self._live:
            raise ValueError(f"malloc({handle}, {num_bytes}): bytes must be positive and the handle new")
        size = round_size(num_bytes)
        small, large = self._pools_of(stream)
        pool = small if size <= SMALL_BYTES else large
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
        """Return the size of a live allocation's block, which may be larger than requested."""
        return self._live[handle].size

    def empty_cache(self) -> None:
        """Release every segment, or page of an expandable one, that holds nothing live (`emptyCache`)."""
        for small, large in self._pools.values():
            large.release_all()
            small.release_all()

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
        pools = itertools.chain.from_iterable(self._pools.values())
        free = [block for pool in pools for _, _, block in pool.free]
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
            for _, large in self._pools.values():
                large.collect_garbage(int(threshold * limit))
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
    streams: Sequence[int] | None = None,
) -> ReplayResult:
    """Return how the events, (handle, bytes) with bytes negative on a free, would go on a card of the limit.

    Before each event whose number is in `emptied` the program empties the cache. `streams` has the stream of
    each event, where there are several.

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
            malloc(handle, num_bytes, 0 if streams is None else streams[index])
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
