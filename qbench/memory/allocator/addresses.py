"""Which addresses a card gives to new segments: the lowest that are free.

The driver does not say how it chooses. Among free blocks of one size the caching allocator takes the lowest
address, so that the choice shows only where segments had been given back before.
"""

from __future__ import annotations

from bisect import bisect_left


class Addresses:
    """Free ranges of a card's addresses, which have no end."""

    __slots__ = ("_end", "_holes")

    def __init__(self) -> None:
        self._end = 0
        self._holes: list[tuple[int, int]] = []
        """(begin, end) of what was given back, in order: no two touch, and none touches what has no end."""

    def take(self, num_bytes: int) -> int:
        """Return where the lowest free range of so many bytes begins, and take it."""
        for index, (begin, end) in enumerate(self._holes):
            if end - begin >= num_bytes:
                rest = [(begin + num_bytes, end)] if end - begin > num_bytes else []
                self._holes[index : index + 1] = rest
                return begin
        begin = self._end
        self._end += num_bytes
        return begin

    def give_back(self, begin: int, num_bytes: int) -> None:
        """Make a range that was taken free again."""
        end = begin + num_bytes
        index = bisect_left(self._holes, (begin, end))
        if index < len(self._holes) and self._holes[index][0] == end:
            end = self._holes.pop(index)[1]
        if index and self._holes[index - 1][1] == begin:
            index -= 1
            begin = self._holes.pop(index)[0]
        if end == self._end:
            self._end = begin
        else:
            self._holes.insert(index, (begin, end))
