"""A baseline changes no more than the numbers do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qbench.comparison.baselines import accept
from qbench.comparison.check import check
from qbench.errors import NotComparableError
from qbench.records.record import Record
from tests.comparison.hand_made import ENVIRONMENT, make_record
from tests.comparison.test_check import STEADY, processes

GIB = 1 << 30


def plans(*peaks: int, **changes: Any) -> list[Record]:
    """Return a plan for each peak, of ranks 8, 16, 24."""
    return [
        make_record(r=8 * number, metrics={"peak_allocated_bytes": peak}, **changes)
        for number, peak in enumerate(peaks, start=1)
    ]


def test_a_first_run_is_taken_whole_and_slim() -> None:
    detail = {"timeline": [[0, 1]], "compute_capability": [8, 0]}
    done = accept([], plans(GIB, 2 * GIB, detail=detail), "first")
    assert (len(done.added), done.replaced, done.removed, done.kept) == (2, (), (), 0)
    assert [record.detail for record in done.records] == [
        {"compute_capability": [8, 0], "accepted": "first"}
    ] * 2
    assert "git_commit" not in done.records[0].environment
    assert check(done.records, plans(GIB, 2 * GIB, detail=detail)).exit_code() == 0


def test_only_what_changed_is_replaced_and_order_does_not_depend_on_it() -> None:
    first = accept([], plans(GIB, 2 * GIB, 3 * GIB), "first")
    later = plans(GIB, 4 * GIB, 3 * GIB, created_at="2026-12-01T00:00:00+00:00")
    done = accept(first.records, later, "peft 0.30 keeps the inputs")
    assert (len(done.replaced), done.added, done.removed, done.kept) == (1, (), (), 2)
    assert done.replaced[0].startswith("Llama-2-7b-hf bf16 r=16")
    assert [before == now for before, now in zip(first.records, done.records, strict=True)].count(False) == 1
    (new,) = set(map(repr, done.records)) - set(map(repr, first.records))
    assert "peft 0.30 keeps the inputs" in new
    assert check(done.records, later).exit_code() == 0


def test_points_that_the_run_lacks_stay_unless_pruned() -> None:
    before = accept([], plans(GIB, 2 * GIB), "first").records
    left = accept(before, plans(GIB), "again")
    assert (left.kept, left.lacking) == (2, {"plan": 1})
    done = accept(before, plans(GIB), "again", prune=True)
    assert len(done.removed) == len(done.records) == 1
    assert done.lacking == {}
    both = accept([], [*plans(GIB, 2 * GIB), *processes(*STEADY)], "first").records
    assert accept(both, plans(GIB), "again").lacking == {"plan": 1, "measurement": 1}


def test_a_speed_within_the_noise_is_no_change() -> None:
    before = accept([], processes(1.0, 1.02, 0.98), "first").records
    done = accept(before, processes(1.01, 0.99, 1.03), "again")
    assert (done.kept, done.records) == (1, before)
    slower = accept(before, processes(1.5, 1.51, 1.52), "slower, and right")
    assert len(slower.replaced) == 1
    assert len(slower.records) == 3


def test_a_file_is_of_one_machine() -> None:
    before = accept([], processes(*STEADY), "first").records
    other = processes(*STEADY, environment=ENVIRONMENT | {"device_name": "NVIDIA L4"})
    with pytest.raises(
        NotComparableError, match=r"machine: the file is of NVIDIA A100.* of NVIDIA L4; .*--to"
    ):
        accept(before, other, "no")
    assert accept(before, [make_record()], "plans have no machine").kept == 1


def test_stale_records_of_a_run_are_not_taken() -> None:
    old = [replace(record, created_at="2026-01-01T00:00:00+00:00") for record in plans(9 * GIB)]
    assert accept([], [*old, *plans(GIB)], "first").records[0].metrics["peak_allocated_bytes"] == GIB


def test_an_empty_run_is_refused() -> None:
    with pytest.raises(NotComparableError, match="has no records"):
        accept(plans(GIB), [], "why")


def test_a_point_without_numbers_is_not_accepted() -> None:
    failed = replace(plans(GIB)[0], outcome="error", metrics={})
    with pytest.raises(NotComparableError, match="1 of 1 records have no numbers to accept"):
        accept([], [failed], "upgrade")


def test_errors_on_both_sides_are_no_agreement() -> None:
    failed = [replace(plans(GIB)[0], outcome="error", metrics={})]
    assert check(failed, failed).exit_code() == 1


def test_other_allocator_settings_are_not_compared() -> None:
    usual = {"expandable_segments": False, "max_split_size_bytes": None}
    before = plans(GIB, detail={"allocator": usual})
    now = plans(GIB, detail={"allocator": {**usual, "expandable_segments": True}})
    assert check(before, now).exit_code() == 2
    assert check(before, before).exit_code() == 0
