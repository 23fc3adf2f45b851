"""The replay of `allocator` for its default settings, several times as fast.

A sweep replays a history for each of its points, and a search for the largest that fits replays it under a
limit as well. No block is held back and ages do not matter, so that free blocks are all there is: they are
kept as whole numbers, and found by where they begin and end. What serves a request is decided as `BlockPool`
and `CachingAllocator` do.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass

from qbench.memory.allocator.addresses import Addresses
from qbench.memory.allocator.blocks import MIN_BLOCK_BYTES, SMALL_BYTES, segment_size
from qbench.memory.allocator.caching import OutOfMemory
from qbench.memory.history.events import Ints, Outline

MAIN_STREAM = 0
_ADDRESS_BITS = 64
_ADDRESS = (1 << _ADDRESS_BITS) - 1


class _Pool:
    """Free blocks of one pool: size and address in one number, ordered as (size, address) would be.

    Segments have a gap between them: blocks of two segments are no neighbours.
    """

    __slots__ = ("addresses", "ends", "free", "make_room", "min_remainder", "reserved", "segments", "starts")

    def __init__(self, min_remainder: int, addresses: Addresses, make_room: Callable[[int], None]) -> None:
        self.make_room = make_room
        """Is called with the bytes of each new segment before it is made."""
        self.min_remainder = min_remainder
        self.addresses = addresses
        self.free: list[int] = []
        self.starts: dict[int, int] = {}
        """Address of each free block -> its end."""
        self.ends: dict[int, int] = {}
        self.segments: dict[int, int] = {}
        """Address of each segment -> its end."""
        self.reserved = 0

    def take(self, size: int) -> tuple[int, int]:
        """Return where the block for a request begins and ends."""
        free = self.free
        index = bisect_left(free, size << _ADDRESS_BITS)
        if index < len(free):
            found = free.pop(index)
            begin = found & _ADDRESS
            end = self.starts.pop(begin)
            del self.ends[end]
        else:
            begin, end = self._new_segment(size)
        rest = end - begin - size
        if rest < self.min_remainder:
            return begin, end
        middle = begin + size
        insort(free, rest << _ADDRESS_BITS | middle)
        self.starts[middle] = end
        self.ends[end] = middle
        return begin, middle

    def give_back(self, begin: int, end: int) -> None:
        """Free a block and merge it with its neighbours."""
        free = self.free
        if end in self.starts:
            after = self.starts.pop(end)
            del free[bisect_left(free, after - end << _ADDRESS_BITS | end)]
            end = after
        if begin in self.ends:
            before = self.ends.pop(begin)
            del free[bisect_left(free, begin - before << _ADDRESS_BITS | before)]
            begin = before
        insort(free, end - begin << _ADDRESS_BITS | begin)
        self.starts[begin] = end
        self.ends[end] = begin

    def _new_segment(self, size: int) -> tuple[int, int]:
        num_bytes = segment_size(size)
        self.make_room(num_bytes)
        begin = self.addresses.take(num_bytes + MIN_BLOCK_BYTES)
        self.segments[begin] = begin + num_bytes
        self.reserved += num_bytes
        return begin, begin + num_bytes

    def release_all(self) -> None:
        """Give back every segment of which nothing is in use."""
        for begin, end in list(self.segments.items()):
            if self.starts.get(begin) != end:
                continue
            del self.segments[begin], self.starts[begin], self.ends[end]
            del self.free[bisect_left(self.free, end - begin << _ADDRESS_BITS | begin)]
            self.reserved -= end - begin
            self.addresses.give_back(begin, end - begin + MIN_BLOCK_BYTES)


class _Pools:
    """Both pools of each stream of a card."""

    def __init__(self, limit_bytes: int | None) -> None:
        self._addresses = Addresses()
        self.small, self.large = self._new_pair()
        self.of_stream = {MAIN_STREAM: (self.small, self.large)}
        self.peak = 0
        self.retries = 0
        self._limit = limit_bytes

    @property
    def reserved(self) -> int:
        return sum(small.reserved + large.reserved for small, large in self.of_stream.values())

    def release_all(self) -> None:
        for small, large in self.of_stream.values():
            large.release_all()
            small.release_all()

    def _new_pair(self) -> tuple[_Pool, _Pool]:
        return (
            _Pool(MIN_BLOCK_BYTES, self._addresses, self._make_room),
            _Pool(SMALL_BYTES + MIN_BLOCK_BYTES, self._addresses, self._make_room),
        )

    def _make_room(self, num_bytes: int) -> None:
        """Release the cache where a segment has no room, and raise OutOfMemory where it still has none."""
        if self._limit is not None and self.reserved + num_bytes > self._limit:
            self.release_all()
            self.retries += 1
            if self.reserved + num_bytes > self._limit:
                raise OutOfMemory(num_bytes, self._limit - self.reserved)
        self.peak = max(self.peak, self.reserved + num_bytes)

    def play(self, outline: Outline, sizes: Ints, served: list[int]) -> None:
        """Serve all events; `served` gets the bytes of each one's block, negative on a free."""
        emptied = sorted(outline.emptied, reverse=True)
        next_emptied = emptied.pop() if emptied else -1
        small, large = self.small, self.large
        live: dict[int, tuple[int, int]] = {}
        streams = outline.streams or itertools.repeat(MAIN_STREAM, len(outline.handles))
        now = MAIN_STREAM
        for handle, size, stream in zip(outline.handles.tolist(), sizes.tolist(), streams, strict=True):
            if len(served) == next_emptied:
                self.release_all()
                next_emptied = emptied.pop() if emptied else -1
            if stream != now:
                if stream not in self.of_stream:
                    self.of_stream[stream] = self._new_pair()
                now, (small, large) = stream, self.of_stream[stream]
            if size > 0:
                begin, end = live[handle] = (small if size <= SMALL_BYTES else large).take(size)
                served.append(end - begin)
            else:
                begin, end = live.pop(handle)
                (small if size >= -SMALL_BYTES else large).give_back(begin, end)
                served.append(begin - end)


def quick_replay(outline: Outline, sizes: Ints) -> tuple[list[int], int]:
    """Return the bytes of each event's block, negative on a free, and the peak of reserved bytes."""
    pools, served = _Pools(None), list[int]()
    pools.play(outline, sizes, served)
    return served, pools.peak


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressed:
    """How a history goes on a card of a limit."""

    peak_reserved_bytes: int
    num_alloc_retries: int
    """Segments for which the cache was released, the last of them in vain where memory runs out."""
    oom_at_event: int | None = None
    """The event that has no room; None where all have."""
    oom_requested_bytes: int = 0
    """The segment that it asks for."""
    oom_free_bytes: int = 0


def pressed_replay(outline: Outline, sizes: Ints, limit_bytes: int) -> Pressed:
    """Return how the events go on a card of so many bytes."""
    pools, served = _Pools(limit_bytes), list[int]()
    try:
        pools.play(outline, sizes, served)
    except OutOfMemory as out:
        return Pressed(
            peak_reserved_bytes=pools.peak,
            num_alloc_retries=pools.retries,
            oom_at_event=len(served),
            oom_requested_bytes=out.requested_bytes,
            oom_free_bytes=out.free_bytes,
        )
    return Pressed(peak_reserved_bytes=pools.peak, num_alloc_retries=pools.retries)
