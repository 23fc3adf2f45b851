"""The quick replay against the model of the allocator, on histories of all kinds."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from qbench.memory.allocator.caching import replay
from qbench.memory.allocator.config import AllocatorConfig
from qbench.memory.allocator.fast_replay import pressed_replay, quick_replay
from qbench.memory.history.events import bytes_asked, event_bytes, outline_of
from qbench.memory.history.ledger import Ledger
from qbench.units import KIB, MIB

# Sizes about the pools' and segments' limits: 1, 2, 10 and 20 MiB.
SIZES = (
    1,
    512,
    700,
    300 * KIB,
    MIB - 512,
    MIB,
    MIB + 1,
    2 * MIB,
    9 * MIB,
    10 * MIB,
    11 * MIB,
    20 * MIB,
    37 * MIB,
)


def random_history(seed: int, share_of_frees: float) -> Ledger:
    """Return a ledger of a thousand events, a third of whose allocations are freed at once."""
    choices = random.Random(seed)
    ledger = Ledger(set())
    live: list[int] = []
    while len(ledger.events) < 1000:
        if live and choices.random() < share_of_frees:
            ledger.free(live.pop(choices.randrange(len(live))))
            continue
        handle = ledger.allocate(choices.choice(SIZES), "aten.mm.default", "")
        if choices.random() < 1 / 3:
            ledger.free(handle)
        else:
            live.append(handle)
    return ledger


@pytest.mark.parametrize("share_of_frees", [0.2, 0.35, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_blocks_and_reserve_are_those_of_the_model(seed: int, share_of_frees: float) -> None:
    ledger = random_history(seed, share_of_frees)
    outline = outline_of(ledger)
    blocks, reserved = quick_replay(outline, event_bytes(outline, bytes_asked(ledger)))
    expected = replay(ledger.events, AllocatorConfig())
    assert blocks.tolist() == [size for _, size in expected.events]
    assert reserved == expected.stats.peak_reserved_bytes


@pytest.mark.parametrize("seed", range(5))
def test_a_cache_that_is_emptied_leaves_both_alike(seed: int) -> None:
    ledger = random_history(seed, 0.5)
    ledger.marks = [(event, "empty_cache") for event in (300, 301, 700)]
    outline = outline_of(ledger)
    blocks, reserved = quick_replay(outline, event_bytes(outline, bytes_asked(ledger)))
    expected = replay(ledger.events, AllocatorConfig(), emptied={300, 301, 700})
    assert blocks.tolist() == [size for _, size in expected.events]
    assert reserved == expected.stats.peak_reserved_bytes


def test_under_a_limit_retries_reserve_and_shortage_are_those_of_the_model() -> None:
    seen = set()
    for seed, share_of_frees in itertools.product(range(4), (0.35, 0.5)):
        ledger = random_history(seed, share_of_frees)
        ledger.marks = [(event, "empty_cache") for event in (300, 301, 700)]
        outline = outline_of(ledger)
        sizes = event_bytes(outline, bytes_asked(ledger))
        _, reserved = quick_replay(outline, sizes)
        for percent in range(60, 101, 5):
            limit = reserved * percent // 100
            expected = replay(ledger.events, AllocatorConfig(), limit, outline.emptied)
            found = pressed_replay(outline, sizes, limit)
            assert found.peak_reserved_bytes == expected.stats.peak_reserved_bytes
            assert found.num_alloc_retries == expected.stats.num_alloc_retries
            assert found.oom_at_event == expected.oom_at_event
            assert (found.oom_requested_bytes, found.oom_free_bytes) == (
                expected.oom_requested_bytes or 0,
                expected.oom_free_bytes or 0,
            )
            seen.add(expected.fits)
    assert seen == {"fits", "with_retries", "oom"}


def test_what_was_emptied_counts_in_the_peak_alone() -> None:
    ledger = Ledger(set())
    ledger.free(ledger.allocate(40 * MIB, "caching_allocator_warmup", ""))
    ledger.empty_cache()
    ledger.allocate(20 * MIB, "aten.mm.default", "")
    outline = outline_of(ledger)
    blocks, reserved = quick_replay(outline, event_bytes(outline, bytes_asked(ledger)))
    # The 20 MiB get a segment of their own, not half of the first, which is gone by then.
    assert (blocks[-1], reserved) == (20 * MIB, 40 * MIB)
    stats = replay(ledger.events, AllocatorConfig(), emptied=outline.emptied).stats
    assert (stats.reserved_bytes, stats.peak_reserved_bytes) == (20 * MIB, 40 * MIB)


def test_blocks_of_two_segments_are_not_merged() -> None:
    ledger = Ledger(set())
    first, second = (ledger.allocate(20 * MIB, "aten.mm.default", "") for _ in range(2))
    ledger.free(first)
    ledger.free(second)
    ledger.allocate(40 * MIB, "aten.mm.default", "")
    outline = outline_of(ledger)
    _, reserved = quick_replay(outline, event_bytes(outline, bytes_asked(ledger)))
    # Two segments of 20 MiB are free, and neither holds 40 MiB.
    assert reserved == 80 * MIB
    assert np.array_equal(outline.handles, [0, 1, 0, 1, 2])
