"""Published runs of real GPUs, repeated on the null GPU: what is compared, and the committed outcome."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks.published_null.rows import Compared, Figure, Run, compare, read_runs

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "benchmarks/published_null/rows"
OUTCOME = ROOT / "reports/nullgpu/published"


def outcome(name: str) -> list[dict[str, str]]:
    """Return the rows that `python -m benchmarks.published_null NAME` wrote, which repeats them."""
    with (OUTCOME / f"{name}.csv").open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_bytes_are_compared_to_the_byte_and_gib_as_rounded() -> None:
    exact = Figure("max_allocated", "26704571904", "B")
    assert exact.equals(26_704_571_904)
    assert not exact.equals(26_704_571_905)
    # 3.0324 GiB stands for what lies within 0.00005 GiB of 3,256,014,707 B: 53,687 B.
    rounded = Figure("after_run max_allocated", "3.0324", "GiB")
    assert rounded.bytes == 3_256_014_707
    assert rounded.equals(3_256_014_707 + 53_000)
    assert not rounded.equals(3_256_014_707 + 54_000)
    assert Figure("after_load allocated", "0.936", "GiB").equals(round(0.93604 * 2**30))


def test_a_figure_is_equal_if_it_is_that_of_either_order() -> None:
    run = Run("run", "source", {}, [Figure("reserved", "3000", "B")])
    answers = {
        "up": {"outcome": "ok", "figures": {"reserved": 3512}},
        "down": {"outcome": "ok", "figures": {"reserved": 3000}},
    }
    (found,) = compare(run, answers)
    assert (found.is_equal, found.difference, found.outcome) == (True, 0, "ok")
    (found,) = compare(run, {"up": {"outcome": "oom"}})
    assert found == Compared(run, run.figures[0], {}, "oom")
    assert (found.is_equal, found.difference) == (False, None)


def test_rows_that_nothing_was_mended_from_are_repeated_within_rests_of_blocks() -> None:
    found = outcome("fms-more")
    assert len(found) == 18
    assert {row["difference_bytes"] for row in found if "7B" in row["model"]} == {"0"}
    # 0.02 % of the peak, there after training, too; not explained yet.
    assert {row["difference_bytes"] for row in found if "70b" in row["model"]} == {"-11534336"}
    found = outcome("fms-liger-more")
    assert len(found) == 54
    assert [row["is_equal"] for row in found].count("True") == 41
    assert {row["difference_bytes"] for row in found} == {"0", "65536", "-524288"}


@pytest.mark.parametrize("name", ["fms", "fms-liger"])
def test_runs_of_the_a100_are_repeated_to_the_byte(name: str) -> None:
    published = [
        (run.name, figure.name, figure.value)
        for run in read_runs(ROWS / f"{name}.csv")
        for figure in run.figures
    ]
    found = outcome(name)
    assert len(found) == {"fms": 14, "fms-liger": 12}[name]
    assert [(row["run"], row["figure"], row["null_up_bytes"]) for row in found] == published
    assert {(row["is_equal"], row["difference_bytes"], row["unit"]) for row in found} == {("True", "0", "B")}


def test_runs_of_the_rtx_4080_are_repeated_as_rounded() -> None:
    published = [
        (run.name, figure.name, figure.value)
        for run in read_runs(ROWS / "cift.csv")
        for figure in run.figures
    ]
    found = outcome("cift")
    assert len(found) == 11 * 7 * 4  # runs, stages, counters
    assert [(row["run"], row["figure"], row["published"]) for row in found] == published
    assert {row["is_equal"] for row in found} == {"True"}
