"""Looks and their shares of the error by hand; whole gates against simulated noise, seeds fixed."""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from collections.abc import Callable

import pytest

from qbench.comparison.intervals import t_quantile
from qbench.comparison.sequential import (
    SidePair,
    StoppingRule,
    check_pairs,
    error_at,
    looks,
    paired_ratio,
    pairs_needed,
)
from qbench.words.verdicts import reason_text
from tests.comparison.hand_made import make_record

Noise = Callable[[], float]


def test_looks_come_at_growing_distances() -> None:
    assert looks(20) == (4, 6, 8, 12, 16, 20)
    assert looks(24) == (4, 6, 8, 12, 16, 24)
    assert looks(4) == (4,)


@pytest.mark.parametrize("most", [4, 5, 20, 100])
def test_all_looks_together_have_half_of_the_allowed_error(most: int) -> None:
    *before, last = looks(most)
    total = sum(error_at(look, most, last=False) for look in before) + error_at(last, most, last=True)
    assert total == pytest.approx(0.005)


def test_an_early_end_leaves_the_error_of_looks_not_taken_to_the_last() -> None:
    # Of at most 20 there are five looks before the last, 0.0005 each; at 7 pairs two of them were taken.
    assert error_at(7, 20, last=True) == pytest.approx(0.004)
    assert error_at(20, 20, last=True) == pytest.approx(0.0025)


def test_the_paired_interval_by_hand() -> None:
    # Logarithms 0, 0.1, 0.2, 0.3: mean 0.15, deviation (0.05 / 3) ** 0.5 = 0.1291, over 2 for four pairs;
    # the quantile 0.995 of three degrees is 5.841 (Abramowitz and Stegun, table 26.10).
    ratio = paired_ratio([(1.0, math.exp(step / 10)) for step in range(4)], 0.01)
    assert ratio is not None
    assert ratio.estimate == pytest.approx(0.15)
    assert ratio.high - 0.15 == pytest.approx(5.841 * 0.1291 / 2, abs=1e-4)
    assert 0.15 - ratio.low == pytest.approx(ratio.high - 0.15)


def test_the_trimmed_interval_by_hand() -> None:
    # Of eight logarithms 0 .. 7 one goes on either end: mean of 1 .. 6 is 3.5. Pulled in: 1 1 2 3 4 5 6 6,
    # squares about 3.5: 2 x (6.25 + 6.25 + 2.25 + 0.25) = 30, deviation (30 / 7) ** 0.5, x 8 / 6.
    ratio = paired_ratio([(1.0, math.exp(step)) for step in range(8)], 0.01)
    assert ratio is not None
    assert ratio.estimate == pytest.approx(3.5)
    assert ratio.deviation == pytest.approx((30 / 7) ** 0.5 * 8 / 6)
    assert ratio.freedom == 5
    assert ratio.high == pytest.approx(3.5 + t_quantile(0.995, 5) * ratio.deviation / 8**0.5)


def test_one_wild_pair_of_eight_moves_nothing() -> None:
    calm = [(1.0, math.exp(step / 1000)) for step in range(8)]
    wild = [*calm[:-1], (1.0, 3.0)]
    assert paired_ratio(wild, 0.01) == paired_ratio(calm, 0.01)


@pytest.mark.parametrize("pairs", [[], [(1.0, 2.0)], [(1.0, 2.0), (0.0, 1.0)]])
def test_what_has_no_interval(pairs: list[SidePair]) -> None:
    assert paired_ratio(pairs, 0.01) is None


def gates(noise: Noise, most: int, change: float, trials: int) -> tuple[Counter[str], float]:
    """Return the verdicts of whole gates, ended when decided, and the mean of their pairs."""
    rule, seen, counts = StoppingRule(most=most), Counter[str](), []
    for _ in range(trials):
        pairs: list[SidePair] = []
        for look in looks(most):
            pairs += [(noise(), noise() * (1 + change)) for _ in range(look - len(pairs))]
            verdict = rule.judge(pairs, "step_time_s", ended=look == most).verdict
            if verdict != "ambiguous":
                break
        seen[verdict] += 1
        counts.append(len(pairs))
    return seen, statistics.fmean(counts)


def normal(deviation: float, seed: int = 5) -> Noise:
    source = random.Random(seed)
    return lambda: math.exp(source.gauss(0, deviation))


def bursts(seed: int = 5) -> Noise:
    """Return noise of 1 %, and one process of twenty a third slower."""
    source = random.Random(seed)
    return lambda: math.exp(source.gauss(0, 0.01) + (0.3 if source.random() < 0.05 else 0))


@pytest.mark.parametrize("noise", [normal(0.02), normal(0.06), bursts()])
def test_equal_code_raises_no_alarm(noise: Noise) -> None:
    seen, _ = gates(noise, 24, 0.0, 1000)
    assert seen["worse"] + seen["better"] <= 12  # At most 5 expected, with a deviation of 2.2.


@pytest.mark.parametrize("noise", [normal(0.02), bursts()])
def test_eight_percent_are_seen(noise: Noise) -> None:
    seen, _ = gates(noise, 24, 0.08, 300)
    assert seen["worse"] >= 285
    assert seen["same"] == 0


@pytest.mark.parametrize("deviation", [0.01, 0.02, 0.04])
def test_the_proposed_number_of_pairs_shows_five_percent(deviation: float) -> None:
    # Of two processes; and the trimmed mean of normal noise has 3 % more of it than the mean.
    most = pairs_needed(1.03 * deviation * 2**0.5, 0.05, 0.03)
    assert most is not None
    seen, spent = gates(normal(deviation), most, 0.05, 400)
    assert seen["worse"] >= 372  # 380 expected, with a deviation of 4.4.
    assert seen["same"] <= 4
    assert spent < most or most <= 6


def test_a_quiet_machine_is_done_after_the_first_look() -> None:
    for change, verdict in ((0.0, "same"), (0.06, "worse"), (-0.06, "better")):
        seen, spent = gates(normal(0.002), 24, change, 50)
        assert seen[verdict] == 50
        assert spent < 5


def test_more_noise_asks_for_more_pairs_and_then_for_too_many() -> None:
    assert pairs_needed(0.001, 0.05, 0.03) == 4
    assert pairs_needed(0.05, 0.05, 0.03) > pairs_needed(0.03, 0.05, 0.03)  # type: ignore[operator]
    assert pairs_needed(1.0, 0.05, 0.03) is None


def measured(times: list[float], **changes: object) -> list[object]:
    return [
        make_record(
            kind="measurement",
            metrics={"step_time_s": [seconds], "peak_allocated_bytes": 1 << 30, "trainable_params": 7},
            detail={"repeat": repeat},
            **changes,
        )
        for repeat, seconds in enumerate(times)
    ]


def test_speed_is_judged_over_pairs_and_the_rest_as_by_check() -> None:
    # A machine that slows down by a half from pair to pair: unpaired, nothing could be seen.
    drift = [1.5**step for step in range(4)]
    slower = [1.1 * seconds * (1 + step / 1000) for step, seconds in enumerate(drift)]
    found = check_pairs(measured(drift), measured(slower), StoppingRule(most=24))  # type: ignore[arg-type]
    verdicts = {finding.metric: finding.verdict for finding in found.findings}
    assert verdicts["step_time_s"] == verdicts["tokens_per_s"] == "worse"
    assert verdicts["peak_allocated_bytes"] == verdicts["trainable_params"] == "same"
    assert found.exit_code() == 1


def test_what_the_budget_leaves_open_is_ambiguous_and_says_what_it_would_take() -> None:
    source = random.Random(1)
    noisy = [[math.exp(source.gauss(0, 0.05)) for _ in range(6)] for _ in range(2)]
    found = check_pairs(*map(measured, noisy), StoppingRule(most=6), ended=True)  # type: ignore[arg-type]
    (finding,) = [finding for finding in found.findings if finding.metric == "step_time_s"]
    assert finding.verdict == "ambiguous"
    assert reason_text(finding.reason).endswith("pairs would show 5 %")
    assert finding.smallest_visible is not None
    assert finding.smallest_visible > 0.05
    assert (found.exit_code(), found.exit_code(strict=True)) == (0, 1)


def test_between_looks_nothing_is_said() -> None:
    pairs = [(1.0, 2.0 + step / 100) for step in range(5)]
    rule = StoppingRule(most=24)
    assert rule.judge(pairs[:3], "step_time_s", ended=False).reason == "between looks"
    assert rule.judge(pairs[:4], "step_time_s", ended=False).verdict == "worse"
    assert rule.judge(pairs, "step_time_s", ended=False) == rule.judge(pairs[:4], "step_time_s", ended=False)
