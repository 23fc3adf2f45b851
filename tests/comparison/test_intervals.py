"""Student's t, the interval over processes, and its power, against tables and against simulated noise."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from qbench.comparison.intervals import log_ratio, processes_needed, t_quantile
from qbench.comparison.verdicts import MIN_EFFECT, verdict_of


@pytest.mark.parametrize(
    ("probability", "freedom", "quantile"),
    [
        # Abramowitz and Stegun, table 26.10.
        (0.95, 1, 6.314),
        (0.995, 1, 63.657),
        (0.975, 2, 4.303),
        (0.995, 3, 5.841),
        (0.995, 4, 4.604),
        (0.995, 10, 3.169),
        (0.95, 30, 1.697),
        (0.995, 120, 2.617),
    ],
)
def test_quantiles_are_those_of_the_tables(probability: float, freedom: int, quantile: float) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(quantile, abs=5e-4)


def test_the_interval_by_hand() -> None:
    # Logarithms 0, 2 and 1, 3: means 1 and 2, variances 2 and 2: deviation 2 ** 0.5, error of the means
    # (2/2 + 2/2) ** 0.5, doubled. Degrees of freedom: (1 + 1) ** 2 / (1/1 + 1/1) = 2: quantile 9.925.
    ratio = log_ratio([1.0, math.e**2], [math.e, math.e**3])
    assert ratio is not None
    assert ratio.estimate == pytest.approx(1)
    assert ratio.deviation == pytest.approx(2**0.5)
    assert ratio.low == pytest.approx(1 - 28.072, abs=1e-3)
    assert ratio.high == pytest.approx(1 + 28.072, abs=1e-3)


def test_each_side_has_its_own_variance() -> None:
    # Logarithms 0, 2, variance 2, of the mean 1; and 0, 1, 2, variance 1, of the mean 1/3.
    ratio = log_ratio([1.0, math.e**2], [1.0, math.e, math.e**2])
    assert ratio is not None
    assert ratio.error == pytest.approx(2 * (1 + 1 / 3) ** 0.5)
    assert ratio.deviation == pytest.approx(1.5**0.5)
    assert ratio.freedom == 1  # (4/3) ** 2 / (1/1 + (1/9)/2) = 1.68


@pytest.mark.parametrize(
    ("counts", "deviations"),
    [
        ((30, 3), (0.01, 0.1)),
        ((100, 3), (0.02, 0.2)),
        ((3, 100), (0.2, 0.02)),
        ((3, 100), (0.02, 0.02)),
        ((10, 3), (0.01, 0.1)),
        ((5, 20), (0.1, 0.01)),
        ((3, 3), (0.01, 0.1)),
    ],
)
def test_equal_code_is_rarely_worse_with_unequal_counts_and_noise(
    counts: tuple[int, int], deviations: tuple[float, float]
) -> None:
    source, worse = random.Random(13), 0
    for _ in range(2000):
        sides = (one_run(source, *each) for each in zip(counts, deviations, strict=True))
        ratio = log_ratio(*sides)
        assert ratio is not None
        worse += verdict_of(ratio, MIN_EFFECT, "lower") == "worse"
    assert worse <= 30  # 1.5 %; with one variance for both sides 21 % of the first row.


@pytest.mark.parametrize("deviations", [(0.02, 0.02), (0.004, 0.04), (0.02, 0.002)])
def test_eight_percent_are_seen_at_the_proposed_count(deviations: tuple[float, float]) -> None:
    count = processes_needed(statistics.fmean(each**2 for each in deviations) ** 0.5, 0.08, MIN_EFFECT)
    assert count is not None
    source, seen = random.Random(17), 0
    for _ in range(2000):
        before, now = (one_run(source, count, each) for each in deviations)
        ratio = log_ratio(before, [1.08 * value for value in now])
        assert ratio is not None
        seen += verdict_of(ratio, MIN_EFFECT, "lower") == "worse"
    assert seen >= 1900


@pytest.mark.parametrize(
    ("baseline", "run"), [([1.0], [2.0]), ([], [1.0, 2.0]), ([1.0], [1.0, 2.0]), ([0.0, 1.0], [1.0, 1.0])]
)
def test_what_has_no_interval(baseline: list[float], run: list[float]) -> None:
    assert log_ratio(baseline, run) is None


def test_without_noise_the_interval_is_a_point() -> None:
    ratio = log_ratio([2.0, 2.0], [3.0, 3.0, 3.0])
    assert ratio is not None
    assert ratio.low == ratio.high == pytest.approx(math.log(1.5))
    assert ratio.smallest_visible(0.03) == pytest.approx(0.03)


def noisy(source: random.Random, count: int, deviation: float, mean: float = 1.0) -> list[float]:
    return [mean * math.exp(source.gauss(0, deviation)) for _ in range(count)]


def one_run(source: random.Random, count: int, deviation: float = 0.02) -> list[float]:
    """Return processes on a machine with moods: each correlates by 0.5 with the one before."""
    mood = source.gauss(0, 1)
    values = []
    for _ in range(count):
        values.append(math.exp(deviation * mood))
        mood = 0.5 * mood + 0.75**0.5 * source.gauss(0, 1)
    return values


@pytest.mark.parametrize("count", [3, 5, 10])
def test_runs_of_alike_processes_are_told_apart_once_in_a_hundred(count: int) -> None:
    source = random.Random(7)
    ratios = [log_ratio(one_run(source, count), one_run(source, count)) for _ in range(2000)]
    missed = sum(ratio is not None and not ratio.low <= 0 <= ratio.high for ratio in ratios)
    assert missed <= 30  # At most 20 expected, with a standard deviation of 4.4.


def test_steps_that_differ_set_a_floor() -> None:
    ratio = log_ratio([1.0, 1.0, 1.0], [1.1, 1.1, 1.1], (0.03, 0.03))
    assert ratio is not None
    assert ratio.deviation == pytest.approx(0.06)
    assert ratio.low < 0 < ratio.high


@pytest.mark.parametrize(("deviation", "effect"), [(0.01, 0.05), (0.03, 0.08), (0.03, 0.05)])
def test_the_proposed_number_of_processes_shows_the_effect(deviation: float, effect: float) -> None:
    source, count = random.Random(11), processes_needed(deviation, effect, 0.03)
    assert count is not None
    seen = 0
    for _ in range(1000):
        ratio = log_ratio(noisy(source, count, deviation), noisy(source, count, deviation, 1 + effect))
        assert ratio is not None
        seen += ratio.low > 0 and ratio.estimate >= math.log(1.03)
    assert seen >= 930  # 95 % by design; the noise of 1000 trials is 0.7 %


def test_more_noise_asks_for_more_processes() -> None:
    counts = [processes_needed(deviation, 0.05, 0.03) for deviation in (0.001, 0.01, 0.02, 0.04)]
    assert counts == sorted(counts, key=lambda count: count or 0)
    assert counts[0] == 3
    assert processes_needed(3.0, 0.05, 0.03) is None
