"""The replay of `allocator` for its default settings, several times as fast.

A sweep replays a history for each of its points, and a search for the largest that fits replays it under a
limit as well. No block is held back and ages do not matter, so that free blocks are all there is: they are
kept as whole numbers, and found by where they begin and end. What serves a request is decided as `BlockPool`
and `CachingAllocator` do.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np

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

    def new_segment(self, size: int) -> tuple[int, int]:
        """Return where a new segment for a request begins and ends; nothing of it is free yet."""
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
        self.failed = -1
        """The allocation for which the last segment was wanted."""
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

    def play(self, outline: Outline, sizes: Ints) -> Ints:
        """Serve all events and return the bytes of each allocation's block.

        Raises OutOfMemory, after which `failed` is the allocation that had no room.
        """
        begins, ends = [0] * len(outline.made), [0] * len(outline.made)
        handles, by_event, streams = outline.handles.tolist(), sizes.tolist(), outline.streams
        start = 0
        for end in sorted({*outline.emptied, len(handles)}):
            if streams is None:
                self._play_part(MAIN_STREAM, handles[start:end], by_event[start:end], begins, ends)
            else:
                for stream, part in _parts_of_streams(streams, start, end):
                    self._play_part(stream, handles[part], by_event[part], begins, ends)
            if end < len(handles):
                self.release_all()
            start = end
        return np.array(ends, dtype=np.int64) - np.array(begins, dtype=np.int64)

    def _play_part(
        self, stream: int, handles: list[int], sizes: list[int], begins: list[int], ends: list[int]
    ) -> None:
        """Serve events of one stream in a row; `begins` and `ends` say where each allocation's block is.

        All is written out here, since a sweep goes through some 50,000 events for each of its points.
        """
        if stream not in self.of_stream:
            self.of_stream[stream] = self._new_pair()
        small, large = self.of_stream[stream]
        for handle, size in zip(handles, sizes, strict=True):
            if size > 0:
                pool = small if size <= SMALL_BYTES else large
                free = pool.free
                index = bisect_left(free, size << _ADDRESS_BITS)
                if index < len(free):
                    begin = free.pop(index) & _ADDRESS
                    end = pool.starts.pop(begin)
                else:
                    self.failed = handle
                    begin, end = pool.new_segment(size)
                middle = begin + size
                if end - middle >= pool.min_remainder:
                    insort(free, end - middle << _ADDRESS_BITS | middle)
                    pool.starts[middle] = end
                    pool.ends[end] = end = middle
                else:
                    pool.ends.pop(end, None)
                begins[handle] = begin
                ends[handle] = end
                continue
            # The block is free again, merged with its neighbours.
            pool = small if size >= -SMALL_BYTES else large
            free, begin, end = pool.free, begins[handle], ends[handle]
            after = pool.starts.pop(end, None)
            if after is not None:
                del free[bisect_left(free, after - end << _ADDRESS_BITS | end)]
                end = after
            before = pool.ends.pop(begin, None)
            if before is not None:
                del free[bisect_left(free, begin - before << _ADDRESS_BITS | before)]
                begin = before
            insort(free, end - begin << _ADDRESS_BITS | begin)
            pool.starts[begin] = end
            pool.ends[end] = begin


def _parts_of_streams(streams: list[int], start: int, end: int) -> Iterator[tuple[int, slice]]:
    """Yield the stream of events in a row that have the same, and which they are."""
    for stream, group in groupby(range(start, end), key=streams.__getitem__):
        events = list(group)
        yield stream, slice(events[0], events[-1] + 1)


def quick_replay(outline: Outline, sizes: Ints) -> tuple[Ints, int]:
    """Return the bytes of each event's block, negative on a free, and the peak of reserved bytes."""
    pools = _Pools(None)
    served = pools.play(outline, sizes)[outline.handles]
    served[outline.is_free] *= -1
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
    pools = _Pools(limit_bytes)
    try:
        pools.play(outline, sizes)
    except OutOfMemory as out:
        return Pressed(
            peak_reserved_bytes=pools.peak,
            num_alloc_retries=pools.retries,
            oom_at_event=int(np.argmax(outline.handles == pools.failed)),
            oom_requested_bytes=out.requested_bytes,
            oom_free_bytes=out.free_bytes,
        )
    return Pressed(peak_reserved_bytes=pools.peak, num_alloc_retries=pools.retries)
