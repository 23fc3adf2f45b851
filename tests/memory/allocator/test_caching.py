"""Hand-worked sequences, numbers of PyTorch's own tests, a plain second model, and invariants.

`test_cuda.py` below is test/test_cuda.py of pytorch/pytorch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise

import pytest

from qbench.errors import ScenarioError
from qbench.memory.allocator.blocks import round_size, segment_size
from qbench.memory.allocator.caching import CachingAllocator, OutOfMemory, replay
from qbench.memory.allocator.config import AllocatorConfig
from qbench.units import GIB, MIB, round_up

NATIVE = AllocatorConfig()
EXPANDABLE = AllocatorConfig(expandable_segments=True)


def allocator_with(
    *sizes: int, config: AllocatorConfig = NATIVE, limit_bytes: int | None = None
) -> CachingAllocator:
    """Return an allocator that was asked for these bytes in turn, as handles 0, 1, 2, ..."""
    allocator = CachingAllocator(config, limit_bytes)
    for handle, num_bytes in enumerate(sizes):
        allocator.malloc(handle, num_bytes)
    return allocator


def layout(allocator: CachingAllocator) -> list[list[tuple[int, bool]]]:
    """Return the (bytes, is allocated) of each block, a list for each segment, small ones first."""
    segments = sorted(allocator.segments(), key=lambda segment: segment.is_large)
    return [[(size, live) for _, size, live in segment.blocks] for segment in segments]


@pytest.mark.parametrize(
    ("requested", "block", "segment"),
    [
        (1, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),  # kSmallSize is still small
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),  # kMinLargeAlloc: a segment of its own size, in steps of 2 MiB
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
        (15 * MIB, 15 * MIB, 16 * MIB),
    ],
)
def test_sizes_of_blocks_and_segments(requested: int, block: int, segment: int) -> None:
    assert round_size(requested) == block
    assert segment_size(block) == segment
    stats = allocator_with(requested).stats
    assert (stats.reserved_bytes, stats.num_segments) == (segment, 1)
    assert stats.requested_bytes == requested


def test_a_block_too_small_to_split_counts_in_full() -> None:
    # 15 MiB in 16 MiB leaves exactly 1 MiB, and a large block is split only when more than that is left.
    stats = allocator_with(15 * MIB).stats
    assert (stats.allocated_bytes, stats.requested_bytes, stats.inactive_split_bytes) == (
        16 * MIB,
        15 * MIB,
        0,
    )


def test_a_large_block_is_split_when_more_than_a_mebibyte_is_left() -> None:
    # 16 MiB - (15 MiB - 512) = 1 MiB + 512
    stats = allocator_with(15 * MIB - 512).stats
    assert (stats.allocated_bytes, stats.inactive_split_bytes) == (15 * MIB - 512, MIB + 512)


def test_a_small_block_is_split_down_to_512_bytes() -> None:
    # 1 MiB + (1 MiB - 512) + 512 = 2 MiB: the third request finds the last 512 B of the segment.
    allocator = allocator_with(MIB, MIB - 512, 1)
    assert layout(allocator) == [[(MIB, True), (MIB - 512, True), (512, True)]]
    assert allocator.stats.reserved_bytes == 2 * MIB


def test_small_and_large_requests_never_share_a_segment() -> None:
    allocator = allocator_with(5 * MIB, 512)  # 15 MiB of the large segment are free, but not for 512 B
    assert allocator.stats.reserved_bytes == 22 * MIB
    assert [segment.is_large for segment in allocator.segments()] == [True, False]


def test_frees_in_any_order_restore_the_segment() -> None:
    allocator = allocator_with(3 * MIB, 4 * MIB, 5 * MIB)
    assert layout(allocator) == [[(3 * MIB, True), (4 * MIB, True), (5 * MIB, True), (8 * MIB, False)]]
    assert allocator.stats.inactive_split_bytes == 8 * MIB
    allocator.free(1)  # between two live blocks: nothing to merge with
    assert allocator.stats.inactive_split_bytes == 12 * MIB
    allocator.free(2)  # merges with both neighbours: 4 + 5 + 8
    assert layout(allocator) == [[(3 * MIB, True), (17 * MIB, False)]]
    assert allocator.stats.inactive_split_bytes == 17 * MIB
    allocator.free(0)
    assert layout(allocator) == [[(20 * MIB, False)]]
    stats = allocator.stats
    assert (stats.allocated_bytes, stats.requested_bytes, stats.num_active) == (0, 0, 0)
    assert (stats.inactive_split_bytes, stats.peak_inactive_split_bytes) == (0, 17 * MIB)
    assert (stats.reserved_bytes, stats.peak_num_active) == (20 * MIB, 3)


def test_best_fit_takes_the_smallest_block_that_suffices() -> None:
    allocator = allocator_with(40 * MIB, 12 * MIB, 24 * MIB)
    starts = [segment.address for segment in allocator.segments()]
    for handle in (0, 1, 2):
        allocator.free(handle)
    assert allocator.malloc(3, 14 * MIB) == starts[2]  # 24 MiB: 12 is too small and 40 is larger
    assert allocator.malloc(4, 9 * MIB) == starts[2] + 14 * MIB  # the 10 MiB left there before 12 and 40
    assert allocator.stats.reserved_bytes == 76 * MIB


def test_among_equal_blocks_the_lowest_address_is_taken() -> None:
    allocator = allocator_with(30 * MIB, 30 * MIB)
    first, second = (segment.address for segment in allocator.segments())
    allocator.free(1)
    allocator.free(0)
    assert allocator.malloc(2, 30 * MIB) == first
    assert allocator.malloc(3, 30 * MIB) == second


def test_fragments_make_reserved_exceed_allocated() -> None:
    # Two segments of 20 MiB hold 9 + 9 MiB each. One of each freed leaves 18 MiB, but no 15 MiB in a row.
    allocator = allocator_with(9 * MIB, 9 * MIB, 9 * MIB, 9 * MIB)
    allocator.free(0)
    allocator.free(2)
    allocator.malloc(4, 15 * MIB)
    stats = allocator.stats
    # 15 MiB sits unsplit in 16 MiB; allocated 9 + 9 + 16 = 34 now, 36 before.
    assert (stats.reserved_bytes, stats.allocated_bytes) == (56 * MIB, 34 * MIB)
    assert stats.peak_reserved_bytes - stats.peak_allocated_bytes == (56 - 36) * MIB


def test_empty_cache_keeps_segments_in_use() -> None:
    allocator = allocator_with(5 * MIB, 5 * MIB, 30 * MIB, 512)
    for handle in (0, 2, 3):
        allocator.free(handle)
    allocator.empty_cache()
    stats = allocator.stats
    assert (stats.reserved_bytes, stats.peak_reserved_bytes, stats.num_segments) == (20 * MIB, 52 * MIB, 1)


def test_oversize_blocks_are_kept_for_oversize_requests() -> None:
    config = AllocatorConfig(max_split_size_bytes=64 * MIB)
    allocator = allocator_with(100 * MIB, config=config)
    allocator.free(0)
    allocator.malloc(1, 30 * MIB)
    assert allocator.stats.reserved_bytes == 130 * MIB
    allocator.malloc(2, 81 * MIB)  # 100 - 81 < 20: served, and not split
    assert allocator.stats.reserved_bytes == 130 * MIB
    assert allocator.stats.allocated_bytes == 130 * MIB
    allocator.free(2)
    allocator.malloc(3, 80 * MIB)  # 100 - 80 is not below 20
    assert allocator.stats.reserved_bytes == 210 * MIB


def test_a_block_below_max_split_size_is_split_as_ever() -> None:
    allocator = allocator_with(60 * MIB, config=AllocatorConfig(max_split_size_bytes=64 * MIB))
    allocator.free(0)
    allocator.malloc(1, 30 * MIB)
    assert allocator.stats.allocated_bytes == 30 * MIB
    assert allocator.stats.reserved_bytes == 60 * MIB


def test_under_pressure_one_oversize_segment_goes_before_the_whole_cache() -> None:
    config = AllocatorConfig(max_split_size_bytes=64 * MIB)
    allocator = allocator_with(70 * MIB, 100 * MIB, 12 * MIB, config=config, limit_bytes=200 * MIB)
    for handle in (0, 1, 2):
        allocator.free(handle)
    # 182 reserved + 40 > 200. 40 is below 64, so the first block of 64 or more goes: 70. 112 + 40 fits.
    allocator.malloc(3, 40 * MIB)
    assert allocator.stats.reserved_bytes == (100 + 12 + 40) * MIB
    assert allocator.stats.num_alloc_retries == 0


def test_under_pressure_the_largest_oversize_segments_go_first() -> None:
    config = AllocatorConfig(max_split_size_bytes=64 * MIB)
    allocator = allocator_with(70 * MIB, 80 * MIB, 90 * MIB, config=config, limit_bytes=240 * MIB)
    for handle in (0, 1, 2):
        allocator.free(handle)
    # No block holds 150: 90 goes, then 80, which makes 170. 70 + 150 fits.
    allocator.malloc(3, 150 * MIB)
    assert allocator.stats.reserved_bytes == (70 + 150) * MIB
    assert allocator.stats.num_alloc_retries == 0


def test_oversize_segments_that_do_not_suffice_are_followed_by_the_rest() -> None:
    config = AllocatorConfig(max_split_size_bytes=64 * MIB)
    allocator = allocator_with(70 * MIB, 30 * MIB, 12 * MIB, config=config, limit_bytes=240 * MIB)
    allocator.free(0)
    allocator.free(2)
    # 70 MiB go, fewer than the 150 asked for, so 12 go as well and a retry counts, though 42 + 150 fits.
    allocator.malloc(3, 150 * MIB)
    assert allocator.stats.reserved_bytes == (30 + 150) * MIB
    assert allocator.stats.num_alloc_retries == 1


def test_garbage_collection_releases_segments_of_average_age_and_older() -> None:
    config = AllocatorConfig(garbage_collection_threshold=0.5)
    allocator = allocator_with(30 * MIB, 40 * MIB, 50 * MIB, config=config, limit_bytes=200 * MIB)
    allocator.free(0)  # after 3 searches of the pool
    allocator.malloc(3, 12 * MIB)  # found in the 30 MiB: the rest is split, so cannot be released
    allocator.free(1)  # after 4
    allocator.malloc(4, 40 * MIB)  # the segment just freed
    allocator.free(4)  # after 5
    allocator.free(2)  # after 5
    allocator.free(3)  # after 5
    allocator.malloc(5, 12 * MIB)
    allocator.free(5)  # after 6; the segment of 30 MiB is whole again
    # Search 7: ages 30: 1, 40: 2, 50: 2; mean 5/3. 120 MiB exceed 0.5 x 200, so 40 and 50 go.
    allocator.malloc(6, 60 * MIB)
    assert sorted(sum(size for size, _ in segment) for segment in layout(allocator)) == [30 * MIB, 60 * MIB]
    assert allocator.stats.num_alloc_retries == 0


def test_garbage_collection_goes_on_with_younger_segments_until_under_the_threshold() -> None:
    config = AllocatorConfig(garbage_collection_threshold=0.25)
    allocator = allocator_with(30 * MIB, 60 * MIB, config=config, limit_bytes=200 * MIB)
    allocator.free(0)  # after 2 searches
    allocator.malloc(2, 20 * MIB)
    allocator.free(2)  # after 3
    allocator.free(1)  # after 3
    allocator.malloc(3, 22 * MIB)  # after 4, in the 30 MiB
    allocator.free(3)
    # Search 5: ages 30: 1, 60: 2. 60 goes, and 30 MiB are under 50.
    allocator.malloc(4, 70 * MIB)
    assert allocator.stats.reserved_bytes == 100 * MIB
    # Search 6: 100 MiB exceed 50 and only the 30 MiB are idle; they go, and there is nothing more.
    allocator.malloc(5, 80 * MIB)
    assert allocator.stats.reserved_bytes == 150 * MIB


def test_garbage_is_not_collected_at_the_threshold_itself() -> None:
    config = AllocatorConfig(garbage_collection_threshold=0.5)
    allocator = allocator_with(40 * MIB, 60 * MIB, config=config, limit_bytes=200 * MIB)
    allocator.free(0)
    allocator.malloc(2, 50 * MIB)  # 100 MiB reserved do not exceed 0.5 x 200
    assert allocator.stats.reserved_bytes == 150 * MIB


@pytest.mark.parametrize(
    ("config", "limit_bytes"),
    [(NATIVE, 200 * MIB), (AllocatorConfig(garbage_collection_threshold=0.1), None)],
    ids=["no threshold", "no limit"],
)
def test_without_threshold_or_limit_nothing_is_collected(
    config: AllocatorConfig, limit_bytes: int | None
) -> None:
    allocator = allocator_with(30 * MIB, config=config, limit_bytes=limit_bytes)
    allocator.free(0)
    allocator.malloc(1, 40 * MIB)
    assert allocator.stats.reserved_bytes == 70 * MIB


def test_the_limit_may_be_met_exactly() -> None:
    assert replay([(0, 40 * MIB), (1, 60 * MIB)], NATIVE, limit_bytes=100 * MIB).fits == "fits"


def test_a_full_card_is_met_by_releasing_the_cache_and_trying_again() -> None:
    events = [(0, 40 * MIB), (1, 512), (0, -40 * MIB), (2, 60 * MIB)]
    result = replay(events, NATIVE, limit_bytes=100 * MIB)
    assert (result.fits, result.oom_at_event, result.stats.num_alloc_retries) == ("with_retries", None, 1)
    # 40 MiB released, the small segment is in use: 2 + 60. The peak was before: 2 + 40.
    assert result.stats.reserved_bytes == result.stats.peak_reserved_bytes == 62 * MIB


def test_out_of_memory_comes_after_the_cache_was_released() -> None:
    events = [
        (0, 40 * MIB),
        (1, 9 * MIB),
        (2, 5 * MIB),
        (0, -40 * MIB),
        (1, -9 * MIB),
        (3, 85 * MIB),
        (4, 512),
    ]
    result = replay(events, NATIVE, limit_bytes=100 * MIB)
    # 40 MiB go; the 20 MiB segment stays for its 5 MiB. 86 MiB do not fit into 80.
    assert (result.fits, result.oom_at_event) == ("oom", 5)
    assert (result.oom_requested_bytes, result.oom_free_bytes) == (86 * MIB, 80 * MIB)
    assert (result.stats.num_ooms, result.stats.num_alloc_retries) == (1, 1)
    assert (result.stats.reserved_bytes, result.stats.allocated_bytes) == (20 * MIB, 5 * MIB)


def test_pages_are_mapped_as_the_expandable_segment_grows() -> None:
    allocator = allocator_with(15 * MIB, config=EXPANDABLE)
    assert allocator.stats.reserved_bytes == 20 * MIB  # one page of the large pool
    allocator.malloc(1, 15 * MIB)  # 5 MiB are free at the end; 10 more take a page
    assert layout(allocator) == [[(15 * MIB, True), (15 * MIB, True), (10 * MIB, False)]]
    allocator.malloc(2, 512)
    stats = allocator.stats
    assert stats.reserved_bytes == 42 * MIB  # and a page of 2 MiB of the small pool
    # Blocks are split to 512 B, and torch counts neither inactive splits nor segments here.
    assert (stats.allocated_bytes, stats.inactive_split_bytes, stats.num_segments) == (30 * MIB + 512, 0, 0)


def test_a_hole_is_preferred_to_the_end_that_can_grow() -> None:
    allocator = allocator_with(30 * MIB, 25 * MIB, config=EXPANDABLE)  # 55 of 60 MiB: 5 free at the end
    allocator.free(0)
    assert allocator.malloc(2, 4 * MIB) == allocator.segments()[0].address  # though the end fits better
    assert layout(allocator) == [[(4 * MIB, True), (26 * MIB, False), (25 * MIB, True), (5 * MIB, False)]]


def test_of_two_equal_holes_the_lower_is_taken() -> None:
    allocator = allocator_with(9 * MIB, 7 * MIB, 9 * MIB, 7 * MIB, config=EXPANDABLE)
    allocator.free(2)
    allocator.free(0)
    assert allocator.malloc(4, 9 * MIB) == allocator.segments()[0].address


def test_the_end_can_grow_through_pages_that_were_released() -> None:
    allocator = allocator_with(50 * MIB, 5 * MIB, 25 * MIB, config=EXPANDABLE)  # 80 MiB, all in use
    start = allocator.segments()[0].address
    allocator.free(2)
    allocator.empty_cache()  # free is [55, 80): the page [60, 80) goes
    allocator.free(0)
    # 4 MiB fit into [55, 60), but what follows that has no end, so the 50 MiB at the start are better.
    assert allocator.malloc(3, 4 * MIB) == start
    assert allocator.stats.reserved_bytes == 60 * MIB


def test_max_split_size_does_not_stop_the_split_of_an_expandable_segment() -> None:
    config = AllocatorConfig(expandable_segments=True, max_split_size_bytes=32 * MIB)
    allocator = allocator_with(45 * MIB, config=config)
    assert layout(allocator) == [[(45 * MIB, True), (15 * MIB, False)]]


def test_only_pages_without_live_bytes_are_unmapped_and_the_gap_is_filled_first() -> None:
    allocator = allocator_with(50 * MIB, 25 * MIB, config=EXPANDABLE)  # 4 pages; 5 MiB free at the end
    start = allocator.segments()[0].address
    allocator.free(0)
    allocator.empty_cache()
    # Free is [0, 50): the pages [0, 20) and [20, 40) go, the third is shared with the live block.
    assert allocator.stats.reserved_bytes == 40 * MIB
    assert layout(allocator) == [[(10 * MIB, False), (25 * MIB, True), (5 * MIB, False)]]
    # 45 MiB fit at address 0: two pages before the 10 MiB that stayed, which the block then reaches into.
    assert allocator.malloc(2, 45 * MIB) == start
    assert allocator.stats.reserved_bytes == 80 * MIB
    assert layout(allocator) == [[(45 * MIB, True), (5 * MIB, False), (25 * MIB, True), (5 * MIB, False)]]


def test_a_full_card_takes_idle_pages_of_the_other_pool() -> None:
    # 20 x 1 MiB are ten small pages. Freed, they make room for a second large page.
    events = [(i, MIB) for i in range(20)] + [(i, -MIB) for i in range(20)] + [(20, 15 * MIB), (21, 15 * MIB)]
    result = replay(events, EXPANDABLE, limit_bytes=50 * MIB)
    assert (result.fits, result.stats.reserved_bytes) == ("with_retries", 40 * MIB)
    assert replay(events, EXPANDABLE, limit_bytes=60 * MIB).fits == "fits"
    assert replay(events, EXPANDABLE, limit_bytes=39 * MIB).fits == "oom"


def test_expandable_segments_fit_where_fixed_ones_do_not() -> None:
    # The case for them in the source's note: each round is a little larger than the one before.
    events = [(i, (20 + 2 * i) * MIB) for i in range(4)]
    events += [event for i in range(4) for event in ((i, -events[i][1]), (10 + i, events[i][1] + 2 * MIB))]
    # Each request is 2 MiB too large for every segment that is free when it comes.
    assert replay(events, NATIVE).stats.peak_reserved_bytes == (20 + 22 + 24 + 26 + 22 + 24 + 26 + 28) * MIB
    # 92 of 100 MiB; 22 more at the end makes 114 of 120. The others find the holes grown together.
    assert replay(events, EXPANDABLE).stats.peak_reserved_bytes == 120 * MIB


@pytest.mark.parametrize(
    ("num_bytes", "native", "native_after", "expandable", "expandable_after"),
    [
        (512, 2, 2, 2, 2),
        (MIB, 4, 2, 4, 2),
        (MIB + 512, 20, 20, 20, 20),
        (10 * MIB - 512, 40, 20, 40, 40),
        (10 * MIB + 512, 36, 12, 40, 20),
    ],
)
def test_reserved_bytes_of_clones_as_pytorch_expects_them(
    num_bytes: int, native: int, native_after: int, expandable: int, expandable_after: int
) -> None:
    """test_cuda.py, test_graph_memory_stats_and_use_result_after_destroy_graph, without its RNG state.

    `b = a.clone()`, then five times `b = b.clone() + 1`; reserved MiB then and after `empty_cache` with only
    b alive, in the graph's pool, which is empty at first.
    """
    for config, during, after in ((NATIVE, native, native_after), (EXPANDABLE, expandable, expandable_after)):
        allocator = allocator_with(num_bytes, config=config)
        for step in range(5):
            allocator.malloc(2 * step + 1, num_bytes)
            allocator.malloc(2 * step + 2, num_bytes)
            allocator.free(2 * step + 1)
            allocator.free(2 * step)
        stats = allocator.stats
        assert (stats.num_active, stats.allocated_bytes) == (1, num_bytes)
        assert stats.reserved_bytes == during * MIB
        allocator.empty_cache()
        assert allocator.stats.reserved_bytes == after * MIB


def test_active_bytes_as_pytorch_expects_them() -> None:
    """test_cuda.py, test_memory_stats: 256 floats are 1024 active bytes, and none once freed."""
    allocator = allocator_with(4 * 256)
    assert allocator.stats.allocated_bytes == 1024
    allocator.free(0)
    allocator.empty_cache()
    assert (allocator.stats.allocated_bytes, allocator.stats.reserved_bytes) == (0, 0)


@pytest.mark.parametrize("config", [NATIVE, EXPANDABLE], ids=["native", "expandable"])
def test_an_allocation_after_out_of_memory_as_pytorch_expects_it(config: AllocatorConfig) -> None:
    """test_cuda.py, test_out_of_memory_retry: half the card twice fails, and works once the first is gone."""
    allocator = allocator_with(12 * GIB, config=config, limit_bytes=24 * GIB - 400 * MIB)
    with pytest.raises(OutOfMemory, match=r"12\.00 GiB, 11\.6\d GiB free"):
        allocator.malloc(1, 12 * GIB)
    allocator.free(0)
    allocator.malloc(1, 12 * GIB)
    stats = allocator.stats
    assert (stats.num_ooms, stats.num_alloc_retries, stats.allocated_bytes) == (1, 1, 12 * GIB)


@pytest.mark.parametrize("expandable", [False, True])
def test_max_split_size_under_a_limit_as_pytorch_expects_it(expandable: bool) -> None:
    """test_cuda.py, test_max_split_expandable, in one mode at a time: 120 MB allowed, three times 40."""
    config = AllocatorConfig(expandable_segments=expandable, max_split_size_bytes=40 * MIB)
    allocator = allocator_with(40 * MIB, 40 * MIB, 40 * MIB, config=config, limit_bytes=120 * MIB)
    with pytest.raises(OutOfMemory):
        allocator.malloc(3, 40 * MIB)
    for handle in (0, 1, 2):
        allocator.free(handle)
    allocator.malloc(3, 120 * MIB)
    assert allocator.stats.reserved_bytes == 120 * MIB


@pytest.mark.parametrize("expandable", [False, True])
def test_garbage_collection_under_a_limit_as_pytorch_expects_it(expandable: bool) -> None:
    """test_cuda.py, test_garbage_collect_expandable, in one mode at a time: 120 MB, 40 + 40, then 80."""
    config = AllocatorConfig(expandable_segments=expandable, garbage_collection_threshold=0.5)
    allocator = allocator_with(40 * MIB, 40 * MIB, config=config, limit_bytes=120 * MIB)
    allocator.free(0)
    allocator.free(1)
    allocator.malloc(2, 80 * MIB)
    assert allocator.stats.reserved_bytes == 80 * MIB
    assert allocator.stats.num_alloc_retries == 0


def random_events(seed: int, num_events: int = 400) -> Iterator[tuple[int, int]]:
    """Yield events of mixed sizes whose live set swells and shrinks, then the frees of what is left."""
    draw = random.Random(seed)
    scales = draw.sample([700, 40_000, MIB, 3 * MIB, 9 * MIB, 16 * MIB, 45 * MIB, 90 * MIB], 4)
    live: list[tuple[int, int]] = []
    for handle in range(num_events):
        if len(live) > draw.randrange(1, 40):
            freed, size = live.pop(draw.randrange(len(live)))
            yield freed, -size
        else:
            live.append((handle, round_size(int(draw.choice(scales) * (0.4 + draw.random())))))
            yield live[-1]
    draw.shuffle(live)
    yield from ((handle, -size) for handle, size in live)


class PlainModel:
    """The algorithm without limits, said again as plainly as can be: a segment is a list of [bytes, handle].

    A handle of -1 is a free block. No links, no index: every step looks at every block.
    """

    def __init__(self, max_split: int) -> None:
        self.max_split = max_split
        self.small: list[list[list[int]]] = []
        self.large: list[list[list[int]]] = []

    def malloc(self, handle: int, size: int) -> None:
        segments = self.small if size <= MIB else self.large
        sizes = sorted(
            (block[0], number, place)
            for number, segment in enumerate(segments)
            for place, block in enumerate(segment)
            if block[1] == -1 and block[0] >= size
        )
        oversize = bool(sizes) and sizes[0][0] >= self.max_split
        if not sizes or (oversize and (size < self.max_split or sizes[0][0] - size >= 20 * MIB)):
            own = -(-size // (2 * MIB)) * 2 * MIB
            segments.append([[2 * MIB if size <= MIB else 20 * MIB if size < 10 * MIB else own, -1]])
            sizes = [(0, len(segments) - 1, 0)]
        segment, place = segments[sizes[0][1]], sizes[0][2]
        rest = segment[place][0] - size
        if rest > 0 if size <= MIB else rest > MIB and size < self.max_split:
            segment[place][0] = size
            segment.insert(place + 1, [rest, -1])
        segment[place][1] = handle

    def free(self, handle: int) -> None:
        for segment in self.small + self.large:
            for place in reversed(range(len(segment))):
                if segment[place][1] == handle:
                    segment[place][1] = -1
            for place in reversed(range(1, len(segment))):
                if segment[place][1] == segment[place - 1][1] == -1:
                    segment[place - 1][0] += segment.pop(place)[0]

    def layout(self) -> list[list[tuple[int, bool]]]:
        return [[(size, handle != -1) for size, handle in segment] for segment in self.small + self.large]


@pytest.mark.parametrize("max_split_mib", [None, 20, 33, 64])
@pytest.mark.parametrize("seed", range(6))
def test_the_layout_is_that_of_a_plain_second_model(seed: int, max_split_mib: int | None) -> None:
    max_split = None if max_split_mib is None else max_split_mib * MIB
    allocator = CachingAllocator(AllocatorConfig(max_split_size_bytes=max_split))
    plain = PlainModel(max_split or 1 << 62)
    for handle, num_bytes in random_events(seed):
        if num_bytes > 0:
            allocator.malloc(handle, num_bytes)
            plain.malloc(handle, num_bytes)
        else:
            allocator.free(handle)
            plain.free(handle)
        assert layout(allocator) == plain.layout()


CONFIGS = {
    "native": NATIVE,
    "expandable": EXPANDABLE,
    "max_split": AllocatorConfig(max_split_size_bytes=20 * MIB),
    "collecting": AllocatorConfig(garbage_collection_threshold=0.3),
    "all": AllocatorConfig(
        expandable_segments=True, max_split_size_bytes=32 * MIB, garbage_collection_threshold=0.5
    ),
}


def check_invariants(allocator: CachingAllocator, live: dict[int, tuple[int, int]], expandable: bool) -> None:
    """Check blocks against the live {handle: (address, bytes)}, and the counters against the blocks."""
    stats, segments = allocator.stats, allocator.segments()
    blocks = [block for segment in segments for block in segment.blocks]
    allocated = {address: size for address, size, is_live in blocks if is_live}
    # Every live allocation has its own block where it was put, large enough; nothing overlaps.
    assert sorted(allocated) == sorted(address for address, _ in live.values())
    assert all(allocated[address] >= num_bytes for address, num_bytes in live.values())
    assert all(one[0] + one[1] <= two[0] for one, two in pairwise(blocks))
    # Within a segment there are no gaps, and no two free blocks side by side.
    for segment in segments:
        for one, two in pairwise(segment.blocks):
            assert one[0] + one[1] == two[0]
            assert one[2] or two[2]
    inactive_split = sum(
        size
        for segment in segments
        if len(segment.blocks) > 1
        for _, size, is_live in segment.blocks
        if not is_live
    )
    assert stats.reserved_bytes == sum(size for _, size, _ in blocks)
    assert stats.allocated_bytes == sum(allocated.values())
    assert stats.inactive_split_bytes == (0 if expandable else inactive_split)
    assert stats.num_segments == (0 if expandable else len(segments))
    assert stats.requested_bytes == sum(num_bytes for _, num_bytes in live.values())
    assert stats.requested_bytes <= stats.allocated_bytes <= stats.reserved_bytes <= stats.peak_reserved_bytes


@pytest.mark.parametrize("limit_bytes", [None, 300 * MIB])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("seed", range(8))
def test_invariants_hold_through_random_sequences(
    seed: int, config: AllocatorConfig, limit_bytes: int | None
) -> None:
    allocator = CachingAllocator(config, limit_bytes)
    live: dict[int, tuple[int, int]] = {}
    refusals: dict[int, OutOfMemory] = {}
    largest_allocated = 0
    for event, (handle, num_bytes) in enumerate(random_events(seed)):
        if num_bytes > 0:
            try:
                live[handle] = allocator.malloc(handle, num_bytes), num_bytes
            except OutOfMemory as refusal:
                refusals[handle] = refusal
        elif handle not in refusals:
            allocator.free(handle)
            del live[handle]
        if event % 97 == 96:
            allocator.empty_cache()
        check_invariants(allocator, live, config.expandable_segments)
        largest_allocated = max(largest_allocated, allocator.stats.allocated_bytes)
        assert limit_bytes is None or allocator.stats.reserved_bytes <= limit_bytes
    # A refused request was larger than what was free, at the latest when rounded up to pages.
    page = 20 * MIB if config.expandable_segments else MIB
    assert all(round_up(refusal.requested_bytes, page) > refusal.free_bytes for refusal in refusals.values())
    assert limit_bytes is not None or not refusals
    # Everything is freed by now: each segment, or mapped range, is one free block.
    assert all(len(segment.blocks) == 1 for segment in allocator.segments())
    allocator.empty_cache()
    stats = allocator.stats
    assert (stats.reserved_bytes, stats.allocated_bytes, stats.inactive_split_bytes) == (0, 0, 0)
    assert (stats.peak_allocated_bytes, stats.num_ooms) == (largest_allocated, len(refusals))
    assert stats.num_alloc_retries >= stats.num_ooms


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_replay_is_what_the_calls_do_and_ends_at_the_first_refusal(config: AllocatorConfig) -> None:
    events = list(random_events(3))
    unlimited = replay(events, config)
    assert (unlimited.fits, unlimited.stats.num_active) == ("fits", 0)
    result = replay(events, config, limit_bytes=unlimited.stats.peak_allocated_bytes // 2)
    assert (result.fits, result.stats.num_ooms) == ("oom", 1)
    assert result.oom_at_event is not None
    before = replay(events[: result.oom_at_event], config, unlimited.stats.peak_allocated_bytes // 2)
    assert before.fits != "oom"
    assert before.stats.allocated_bytes == result.stats.allocated_bytes


@pytest.mark.parametrize("config", [NATIVE, EXPANDABLE], ids=["native", "expandable"])
@pytest.mark.parametrize("seed", range(4))
def test_the_peak_is_the_smallest_limit_met_without_retries(seed: int, config: AllocatorConfig) -> None:
    events = list(random_events(seed))
    peak = replay(events, config).stats.peak_reserved_bytes
    assert replay(events, config, limit_bytes=peak).fits == "fits"
    assert replay(events, config, limit_bytes=peak - 1).fits != "fits"


def test_handles_must_be_new_and_known_and_sizes_positive() -> None:
    allocator = allocator_with(512)
    with pytest.raises(ValueError, match="handle new"):
        allocator.malloc(0, 512)
    with pytest.raises(ValueError, match="must be positive"):
        allocator.malloc(1, 0)
    with pytest.raises(ValueError, match="no live allocation"):
        allocator.free(1)
    assert allocator.stats.num_active == 1


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("", NATIVE),
        ("expandable_segments:True", EXPANDABLE),
        ("expandable_segments:False", NATIVE),
        (
            " expandable_segments : True, max_split_size_mb:128 ",
            AllocatorConfig(expandable_segments=True, max_split_size_bytes=128 * MIB),
        ),
        (
            "garbage_collection_threshold:0.8,max_split_size_mb:20",
            AllocatorConfig(garbage_collection_threshold=0.8, max_split_size_bytes=20 * MIB),
        ),
    ],
)
def test_settings_are_read_from_the_text_of_the_environment(text: str, config: AllocatorConfig) -> None:
    assert AllocatorConfig.from_env_text(text) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "expandable_segment:True",
            "'expandable_segment:True' is not modelled; allowed: expandable_segments",
        ),
        (
            "roundup_power2_divisions:[256:1,512:2]",
            "'roundup_power2_divisions:.256:1,512:2.' is not modelled",
        ),
        ("expandable_segments:true", "expandable_segments: 'true' given, allowed: True or False"),
        ("expandable_segments", "expandable_segments: '' given"),
        ("max_split_size_mb:128MB", "max_split_size_mb: '128MB' given, allowed: a whole number"),
        ("max_split_size_mb:19", "19.0 MiB given, allowed: 20 MiB or more"),
        ("garbage_collection_threshold:1.0", "1.0 given, allowed: above 0 and below 1"),
        ("garbage_collection_threshold:nan", "nan given"),
        ("max_split_size_mb:64,,", "'' is not modelled"),
    ],
)
def test_settings_that_torch_or_the_model_refuse(text: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        AllocatorConfig.from_env_text(text)


def test_all_problems_of_a_text_are_told_at_once() -> None:
    with pytest.raises(ScenarioError) as caught:
        AllocatorConfig.from_env_text("backend:native,expandable_segments:1")
    assert len(caught.value.problems) == 2


def test_settings_of_a_process_that_are_not_modelled_are_named() -> None:
    text = "max_split_size_mb:64, backend:native,roundup_power2_divisions:[64:8,>:1]"
    config, unknown = AllocatorConfig.of_environment(text)
    assert config == AllocatorConfig(max_split_size_bytes=64 * MIB)
    assert unknown == ("backend:native", "roundup_power2_divisions:[64:8,>:1]")
    assert AllocatorConfig.of_environment("") == (NATIVE, ())


@pytest.mark.parametrize("config", [NATIVE, EXPANDABLE], ids=["native", "expandable"])
def test_a_watcher_hears_of_all_memory_taken_and_given_back(config: AllocatorConfig) -> None:
    heard: list[tuple[str, int]] = []

    def watch(action: str, address: int, num_bytes: int) -> None:
        heard.append((action, num_bytes))

    allocator = CachingAllocator(config, watch=watch)
    allocator.malloc(0, 30 * MIB)
    allocator.free(0)
    allocator.empty_cache()
    # 30 MiB are a segment of their own size, or two pages of 20.
    taken, size = ("map", 40) if config.expandable_segments else ("alloc", 30)
    given = "unmap" if config.expandable_segments else "free"
    assert heard == [(f"segment_{taken}", size * MIB), (f"segment_{given}", size * MIB)]
