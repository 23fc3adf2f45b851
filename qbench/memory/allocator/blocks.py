"""The pools of PyTorch's CUDA caching allocator: segments, their blocks, and which block serves a request.

Sizes and rules are those of c10/cuda/CUDACachingAllocator.cpp and c10/core/AllocatorConfig.h (torch 2.13);
docstrings name the function there that each part follows.

Simplified: addresses only rise, where cudaMalloc may hand out a released one again, so a tie between free
blocks of equal size in two segments may fall otherwise on a card. An expandable segment has room without
end, where CUDA reserves 9/8 of the card, so that each pool has exactly one.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, insort
from collections.abc import Callable
from typing import Literal

from qbench.memory.allocator.addresses import Addresses
from qbench.units import MIB, round_up

MIN_BLOCK_BYTES = 512
"""kMinBlockSize: every block is a multiple of this."""
SMALL_BYTES = MIB
"""kSmallSize: the largest request of the small pool."""
SMALL_SEGMENT_BYTES = 2 * MIB
"""kSmallBuffer: a segment of the small pool, and the page of its expandable segment."""
MIN_LARGE_BYTES = 10 * MIB
"""kMinLargeAlloc: from here on a request gets a segment of its own size."""
LARGE_SEGMENT_BYTES = 20 * MIB
"""large_segment_size: a segment for requests below that, and the page of the large expandable segment."""
ROUND_LARGE_BYTES = 2 * MIB
"""kRoundLarge: segments of a request's own size are multiples of this."""
OVERSIZE_SLACK_BYTES = 20 * MIB
"""max_non_split_rounding_size: an oversize block serves requests that are smaller by less than this."""

SegmentAction = Literal["segment_alloc", "segment_free", "segment_map", "segment_unmap"]
SegmentWatcher = Callable[[SegmentAction, int, int], None]
"""Called for device memory taken or given back: how, by the names of torch's traces, address and bytes."""

UNLIMITED = sys.maxsize
ALLOCATED, FREE, UNMAPPED = range(3)

ADDRESS_SPACE = LARGE_SEGMENT_BYTES << 30
"""Addresses of one pool: a multiple of both pages, so that an address alone tells where pages begin."""


def round_size(num_bytes: int) -> int:
    """Return the bytes of the block for a request (`round_size`): a multiple of 512 B."""
    return round_up(num_bytes, MIN_BLOCK_BYTES)


def segment_size(block_bytes: int) -> int:
    """Return the bytes asked of cudaMalloc for a rounded request (`get_allocation_size`)."""
    if block_bytes <= SMALL_BYTES:
        return SMALL_SEGMENT_BYTES
    if block_bytes < MIN_LARGE_BYTES:
        return LARGE_SEGMENT_BYTES
    return round_up(block_bytes, ROUND_LARGE_BYTES)


class DeviceMemory:
    """The memory of a card that is the allocator's to take."""

    __slots__ = ("addresses", "limit_bytes", "num_segments", "peak_reserved_bytes", "reserved_bytes", "watch")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.addresses = Addresses()
        self.reserved_bytes = self.peak_reserved_bytes = self.num_segments = 0
        self.watch: SegmentWatcher = _ignore

    def take(self, num_bytes: int) -> bool:
        """Reserve so many bytes, or say that they are not there."""
        if self.reserved_bytes + num_bytes > self.limit_bytes:
            return False
        self.reserved_bytes += num_bytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        return True


def _ignore(action: SegmentAction, address: int, num_bytes: int) -> None:
    """Watch nothing."""


class Block:
    """A range of a segment: allocated, free, or, in an expandable segment, without memory behind it."""

    __slots__ = ("address", "next", "pool", "prev", "requested", "searches", "size", "state")

    def __init__(self, pool: BlockPool, address: int, size: int, state: int) -> None:
        self.pool = pool
        self.address = address
        self.size = size
        self.state = state
        self.prev: Block | None = None
        self.next: Block | None = None
        self.requested = 0
        self.searches = 0
        """Searches of the pool before the block became free, to tell its age."""

    @property
    def is_whole_segment(self) -> bool:
        """Say whether nothing else is in the block's segment: the opposite of `is_split`."""
        return self.prev is None and self.next is None

    def cut(self, size: int, state: int) -> Block:
        """Shorten the block to `size` and return what follows as a block of its own."""
        rest = Block(self.pool, self.address + size, self.size - size, state)
        rest.prev, rest.next = self, self.next
        if self.next is not None:
            self.next.prev = rest
        self.next = rest
        self.size = size
        return rest


class BlockPool:
    """Segments of cudaMalloc for small or for large requests; free blocks are kept by (size, address)."""

    __slots__ = ("device", "free", "is_large", "max_split", "min_remainder", "searches")

    def __init__(self, device: DeviceMemory, is_large: bool, max_split: int) -> None:
        self.device = device
        self.is_large = is_large
        self.max_split = max_split
        self.free: list[tuple[int, int, Block]] = []
        self.searches = 0
        # A large block must leave more than 1 MiB, and sizes are multiples of 512 B.
        self.min_remainder = SMALL_BYTES + MIN_BLOCK_BYTES if is_large else MIN_BLOCK_BYTES

    def should_split(self, block: Block, size: int) -> bool:
        """`should_split`: say whether the rest of a block is worth keeping apart."""
        return block.size - size >= self.min_remainder and size < self.max_split

    def insert(self, block: Block) -> None:
        """File a free block; its age counts from here."""
        block.searches = self.searches
        insort(self.free, (block.size, block.address, block))

    def remove(self, block: Block) -> None:
        """Take a free block out of the file."""
        del self.free[bisect_left(self.free, (block.size, block.address))]

    def find(self, size: int) -> Block | None:
        """`get_free_block`: take the smallest free block that is large enough, the lowest of equals."""
        self.searches += 1
        index = bisect_left(self.free, (size, 0))
        if index == len(self.free):
            return None
        index = self.better_fit(index)
        found = self.free[index][0]
        if found >= self.max_split and (size < self.max_split or found >= size + OVERSIZE_SLACK_BYTES):
            return None
        return self.free.pop(index)[2]

    def better_fit(self, index: int) -> int:
        """Return the place of the free block to use when the one at `index` is the first that suffices."""
        return index

    def absorb_neighbours(self, block: Block) -> int:
        """`try_merge_blocks`: merge neighbours of its state into `block`, itself not filed; return bytes."""
        before = block.size
        prev, following = block.prev, block.next
        if prev is not None and prev.state == block.state:
            self.remove(prev)
            block.address = prev.address
            block.size += prev.size
            block.prev = prev.prev
            if block.prev is not None:
                block.prev.next = block
        if following is not None and following.state == block.state:
            self.remove(following)
            block.size += following.size
            block.next = following.next
            if block.next is not None:
                block.next.prev = block
        return block.size - before

    def new_block(self, size: int) -> Block | None:
        """`alloc_block`: return a new segment as one free block, not filed; None when the card is full."""
        num_bytes = segment_size(size)
        if not self.device.take(num_bytes):
            return None
        block = Block(self, self.device.addresses.take(num_bytes), num_bytes, FREE)
        self.device.num_segments += 1
        self.device.watch("segment_alloc", block.address, num_bytes)
        return block

    def release(self, block: Block) -> None:
        """`release_block`: give a segment that is one free block back to the card."""
        self.remove(block)
        self.device.addresses.give_back(block.address, block.size)
        self.device.reserved_bytes -= block.size
        self.device.num_segments -= 1
        self.device.watch("segment_free", block.address, block.size)

    def release_all(self) -> None:
        """`release_blocks`: give back every segment of which nothing is in use."""
        for _, _, block in list(self.free):
            if block.is_whole_segment:
                self.release(block)

    def release_oversize(self, size: int) -> bool:
        """`release_available_cached_blocks`: make room for `size` out of oversize segments, if they suffice.

        One that is large enough goes alone; else the largest go, one after the other.
        """
        needed = max(size, self.max_split)
        index = bisect_left(self.free, (needed, 0))
        if index < len(self.free):
            self.release(self.free[index][2])
            return True
        released = 0
        while released < needed and self.free and self.free[-1][0] >= self.max_split:
            released += self.free[-1][0]
            self.release(self.free[-1][2])
        return released >= needed

    def collect_garbage(self, allowed_bytes: int) -> None:
        """`garbage_collect_cached_blocks`: release idle segments of average age or more, until under.

        A round is not cut short, so it may release more than is needed. Age counts searches of the pool.
        """
        idle = [block for _, _, block in self.free if block.is_whole_segment]
        while idle and self.device.reserved_bytes > allowed_bytes:
            ages = [self.searches - block.searches for block in idle]
            average = sum(ages) / len(ages)
            for block, age in zip(idle, ages, strict=True):
                if age >= average:
                    self.release(block)
            idle = [block for block, age in zip(idle, ages, strict=True) if age < average]


class ExpandablePool(BlockPool):
    """One segment that grows: pages are mapped where they are needed and unmapped when memory runs short."""

    __slots__ = ("page_bytes", "unmapped")

    def __init__(self, device: DeviceMemory, is_large: bool, max_split: int) -> None:
        super().__init__(device, is_large, max_split)
        self.page_bytes = LARGE_SEGMENT_BYTES if is_large else SMALL_SEGMENT_BYTES
        self.min_remainder = MIN_BLOCK_BYTES
        self.unmapped: list[tuple[int, Block]] = []
        self.insert(Block(self, ADDRESS_SPACE if is_large else 0, ADDRESS_SPACE, UNMAPPED))

    def should_split(self, block: Block, size: int) -> bool:
        """`should_split`: `max_split` does not hold back expandable segments."""
        return block.size - size >= self.min_remainder

    def insert(self, block: Block) -> None:
        """File a free block by size or an unmapped one by address."""
        if block.state == FREE:
            block.searches = self.searches
            insort(self.free, (block.size, block.address, block))
        else:
            insort(self.unmapped, (block.address, block))

    def remove(self, block: Block) -> None:
        """Take a free or an unmapped block out of its file."""
        if block.state == FREE:
            del self.free[bisect_left(self.free, (block.size, block.address))]
        else:
            del self.unmapped[bisect_left(self.unmapped, (block.address,))]

    def better_fit(self, index: int) -> int:
        """Pass over blocks that could still grow: they count as large as they can become."""
        last = len(self.free) - 1
        while index < last and _grown(self.free[index + 1]) < _grown(self.free[index]):
            index += 1
        return index

    def new_block(self, size: int) -> Block | None:
        """`try_allocate_expandable_block`: map pages at the lowest address where `size` bytes then fit.

        When the card is full, what was mapped on the way stays, as free memory.
        """
        block = self._lowest_room(size)
        if block.state == UNMAPPED and not self._map(block, size):
            return None
        while block.size < size:
            following = block.next
            assert following is not None
            if not self._map(following, size - block.size):
                return None
            block = following
        self.remove(block)
        return block

    def _lowest_room(self, size: int) -> Block:
        """`find_expandable_block`: where free and unmapped blocks in a row first add up to `size`."""
        for _, block in self.unmapped:
            start = block.prev if block.prev is not None and block.prev.state == FREE else block
            room = 0
            at: Block | None = start
            while room < size and at is not None and at.state != ALLOCATED:
                room += at.size
                at = at.next
            if room >= size:
                return start
        raise AssertionError("an expandable segment has room without end")

    def _map(self, block: Block, size: int) -> bool:
        """`map_block`: put pages behind the first `size` bytes of an unmapped block, or behind all of it."""
        num_bytes = min(round_up(size, self.page_bytes), block.size)
        if not self.device.take(num_bytes):
            return False
        self.device.watch("segment_map", block.address, num_bytes)
        self.remove(block)
        block.state = FREE
        if num_bytes < block.size:
            self.insert(block.cut(num_bytes, UNMAPPED))
        self.absorb_neighbours(block)
        self.insert(block)
        return True

    def release_all(self) -> None:
        """`release_blocks`: unmap every page of which nothing is in use."""
        for _, _, block in list(self.free):
            self._unmap(block)

    def _unmap(self, block: Block) -> None:
        """`unmap_block`: take away the pages that lie within a free block; its ends may stay."""
        begin = round_up(block.address, self.page_bytes)
        end = (block.address + block.size) // self.page_bytes * self.page_bytes
        if begin >= end:
            return
        self.device.watch("segment_unmap", begin, end - begin)
        self.remove(block)
        if begin > block.address:
            front, block = block, block.cut(begin - block.address, FREE)
            self.insert(front)
        if block.size > end - begin:
            self.insert(block.cut(end - begin, FREE))
        block.state = UNMAPPED
        self.absorb_neighbours(block)
        self.insert(block)
        self.device.reserved_bytes -= end - begin

    def release_oversize(self, size: int) -> bool:
        """Return False: pages have no size of their own, so no oversize segment can go alone."""
        return False


def _grown(entry: tuple[int, int, Block]) -> int:
    following = entry[2].next
    return entry[0] + (following.size if following is not None and following.state == UNMAPPED else 0)
