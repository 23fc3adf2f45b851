"""Whose memory is it? Hand-made states of a card."""

from __future__ import annotations

import os

import pytest

from qbench.measure.nvml import CardState
from qbench.measure.reconciliation import CardUse, reconcile

OWN = os.getpid()
HOST_ID = 999_999_999
MIB = 1 << 20


def card(used: int | None, own: int | None = None, pids: tuple[int, ...] | None = ()) -> CardState:
    """Return a state, sizes in MiB."""
    return CardState(
        used_bytes=None if used is None else used * MIB,
        own_bytes=None if own is None else own * MIB,
        pids=pids,
    )


def readings(before: CardState, now: CardState, reserved: int = 2000) -> CardUse:
    return CardUse(before=before, now=now, reserved_bytes=reserved * MIB)


def test_the_drivers_figure_for_this_process_counts_first():
    # 10 MiB were in use before, 2600 are now; 2500 of them are ours, so 90 are not, and 500 are outside.
    found = readings(card(10), card(2600, own=2500, pids=(OWN, 7)))
    assert found.own_bytes == 2500 * MIB
    assert found.outside_bytes == 500 * MIB
    assert reconcile(found, 400 * MIB) == {
        "device_bytes": 2590 * MIB,
        "context_bytes": 400 * MIB,
        "reserved_bytes": 2000 * MIB,
        "non_torch_bytes": 100 * MIB,
        "unexplained_bytes": 90 * MIB,
    }


def test_the_parts_are_the_whole():
    parts = reconcile(readings(card(10), card(2600, own=2500, pids=(OWN,))), 400 * MIB)
    total = parts.pop("device_bytes")
    assert sum(value or 0 for value in parts.values()) == total


def test_on_a_card_that_was_empty_the_growth_is_ours_under_whatever_id():
    found = readings(card(10), card(2510, pids=(HOST_ID,)))
    assert found.own_bytes == 2500 * MIB
    assert reconcile(found, 400 * MIB)["unexplained_bytes"] == 0


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (card(900, pids=(7,)), card(3400, pids=(7, HOST_ID))),  # Somebody was there.
        (card(10), card(3400, pids=(7, HOST_ID))),  # Somebody came.
        (card(10), card(2510, pids=(os.getppid(),))),  # The one that is listed is another one here.
        (card(900), card(3400, pids=())),  # Nobody is ever listed, and somebody may have been there.
        (card(10, pids=None), card(2510, pids=(HOST_ID,))),  # Nobody knows who was there.
        (card(10), card(2510, pids=None)),
        (card(None), card(2510, pids=(HOST_ID,))),
        (card(10), card(None, pids=(HOST_ID,))),
        # Another process has our id in the driver's list: it holds less than our allocator alone.
        (card(10), card(9000, own=1999, pids=(OWN, HOST_ID))),
    ],
)
def test_what_nothing_says_for_certain_is_unknown(before: CardState, now: CardState):
    found = readings(before, now)
    assert found.own_bytes is None
    assert found.outside_bytes is None
    assert reconcile(found, None)["non_torch_bytes"] is None


def test_where_no_process_is_ever_listed_use_says_whether_another_one_came():
    opened = CardUse(before=card(10), now=card(412), reserved_bytes=2 * MIB)
    assert opened.outside_bytes == 400 * MIB

    def later(used: int) -> CardUse:
        return CardUse(
            before=card(10), now=card(used), reserved_bytes=2000 * MIB, context_bytes=opened.outside_bytes
        )

    # 2500 MiB less 2000 are 100 more than the context: modules that were loaded since.
    assert later(2510).outside_bytes == 500 * MIB
    # The least context of any card is 256 MiB, and so is what is there beside the first one: not ours alone.
    assert later(2666).outside_bytes is None


def test_without_a_figure_of_this_process_the_rest_of_the_growth_is_unexplained():
    # Grown by 2500 + 900 of somebody else's; context and allocator explain 400 + 2000.
    parts = reconcile(readings(card(10), card(3410, pids=(7, HOST_ID))), 400 * MIB)
    assert parts["non_torch_bytes"] is None
    assert parts["unexplained_bytes"] == 1000 * MIB


def test_without_a_driver_only_the_allocator_is_known():
    parts = reconcile(readings(CardState(), CardState()), None)
    assert {name for name, value in parts.items() if value is not None} == {"reserved_bytes"}
