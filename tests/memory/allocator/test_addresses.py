"""Which addresses new segments get where others were given back."""

from __future__ import annotations

from qbench.memory.allocator.addresses import Addresses


def test_the_lowest_range_that_is_large_enough_is_taken() -> None:
    addresses = Addresses()
    assert [addresses.take(size) for size in (20, 10, 30, 10)] == [0, 20, 30, 60]
    addresses.give_back(0, 20)
    addresses.give_back(30, 30)
    assert addresses.take(25) == 30  # the first hole has 20 alone
    assert addresses.take(5) == 0
    assert addresses.take(20) == 70  # 15 are left in the first hole, 5 in the second


def test_neighbouring_ranges_become_one() -> None:
    addresses = Addresses()
    for size in (20, 10, 30, 10):
        addresses.take(size)
    addresses.give_back(20, 10)
    addresses.give_back(0, 20)
    addresses.give_back(30, 30)
    assert addresses.take(60) == 0
    addresses.give_back(60, 10)
    addresses.give_back(0, 60)
    assert addresses.take(1000) == 0  # all is free again, up to the end that there is not
