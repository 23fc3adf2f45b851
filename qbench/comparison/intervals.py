"""How much slower one set of processes is than another, as an interval, and what the interval could miss.

One value a process. Logarithms are compared, since noise of a machine is a share of the time. Each side has
a variance of its own: a baseline of 30 processes of a quiet night must not make 3 of a busy day look sure.
Source: Welch 1947, Biometrika 34, 28; his degrees of freedom, rounded down.

The processes of a run follow one another, and a machine that others use, too, is fast for a while and then
slow for a while: they are more alike than they are like another run, and their mean is less certain than
their number says. ALIKE makes up for that. And a few of them may agree by chance; on a machine whose steps
differ, processes do, too, which sets a floor.
"""

from __future__ import annotations

import bisect
import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.99
"""Of the interval: one comparison in a hundred of equal code lies outside."""

POWER = 0.95
"""Chance with which the smallest visible change would be seen."""

ALIKE = 2.0
"""What the error of a run's mean is multiplied with. On the shared 2-core machine of reports/gate, neighbours
correlate by 0.5, the next ones by 0.4 and 0.2, which makes 1.9 to 2.0 for 3 to 10 processes."""

FLOOR = 2.0
"""The least deviation of processes, in deviations of the steps of one. On that machine it is 1.8 and more."""

MOST_PROCESSES = 100
"""Maximum processes per side; more take too long."""

LEAST_PROCESSES = 3
"""Minimum processes per side. Two may agree by chance and make any third look like a change."""


@dataclass(frozen=True, slots=True)
class LogRatio:
    """Run over baseline: the natural logarithm of the ratio, its interval, and the noise behind it."""

    estimate: float
    low: float
    high: float
    error: float
    """Standard error of the estimate."""
    deviation: float
    """Standard deviation of one process: the root of the mean of both sides' variances."""
    freedom: int
    """Degrees of freedom of the error."""
    confidence: float = CONFIDENCE

    def smallest_visible(self, min_effect: float) -> float:
        """Return the smallest change, as a share, that would have been detected with probability POWER."""
        return visible(self.error, self.freedom, min_effect, self.confidence)


def log_ratio(
    baseline: Sequence[float], run: Sequence[float], within: tuple[float, float] = (0.0, 0.0)
) -> LogRatio | None:
    """Return run over baseline with an interval of CONFIDENCE.

    `within` is the deviation of the logarithm of the steps of one process, of the baseline and of the run.
    None with one process on a side, which says nothing of its noise, or when a value is not above zero.
    """
    if min(len(baseline), len(run)) < 2 or min(*baseline, *run) <= 0:
        return None
    before, now = [math.log(value) for value in baseline], [math.log(value) for value in run]
    # A variance of 0 by chance: values that a clock rounds alike.
    variances = [
        max(statistics.variance(logs), (FLOOR * steps) ** 2)
        for logs, steps in zip((before, now), within, strict=True)
    ]
    of_means = [variance / len(logs) for variance, logs in zip(variances, (before, now), strict=True)]
    freedom = _freedom(of_means, (len(before) - 1, len(now) - 1))
    error = ALIKE * math.sqrt(sum(of_means))
    estimate = statistics.fmean(now) - statistics.fmean(before)
    deviation = math.sqrt(statistics.fmean(variances))
    return _interval(estimate, error, deviation, freedom, CONFIDENCE)


def mean_interval(logs: Sequence[float], error: float, cut: int = 0) -> LogRatio:
    """Return the mean of two or more logarithms with an interval that misses the truth by `error`.

    `cut` values on either end are left out of the mean; its error comes from the values with those ends
    pulled in (Tukey and McLaughlin 1963). Without a cut that is mean +- t s / sqrt(n).
    """
    count, ordered = len(logs), sorted(logs)
    inner = ordered[cut : count - cut]
    pulled_in = [inner[0]] * cut + inner + [inner[-1]] * cut
    deviation = statistics.stdev(pulled_in) * count / len(inner)
    estimate, freedom = statistics.fmean(inner), len(inner) - 1
    return _interval(estimate, deviation / math.sqrt(count), deviation, freedom, 1 - error)


def _interval(estimate: float, error: float, deviation: float, freedom: int, confidence: float) -> LogRatio:
    reach = t_quantile((1 + confidence) / 2, freedom) * error
    return LogRatio(estimate, estimate - reach, estimate + reach, error, deviation, freedom, confidence)


def _freedom(of_means: Sequence[float], freedoms: tuple[int, int]) -> int:
    """Return Welch's degrees of freedom of the sum of two variances of means, rounded down."""
    total = sum(of_means)
    if total == 0:
        return sum(freedoms)
    return int(
        1 / sum((part / total) ** 2 / freedom for part, freedom in zip(of_means, freedoms, strict=True))
    )


def processes_needed(deviation: float, effect: float, min_effect: float) -> int | None:
    """Return how many processes per side would show a change of `effect` (a share), None when too many.

    `deviation` is that of the logarithm of one process, as `LogRatio` has it. Degrees of freedom are counted
    as though all the noise were of one side: the other may be much quieter.
    """
    counts = range(LEAST_PROCESSES, MOST_PROCESSES + 1)
    index = bisect.bisect_left(
        counts,
        -effect,
        key=lambda count: -visible(ALIKE * deviation * math.sqrt(2 / count), count - 1, min_effect),
    )
    return counts[index] if index < len(counts) else None


def visible(error: float, freedom: int, min_effect: float, confidence: float = CONFIDENCE) -> float:
    """Return the smallest change, as a share, that an interval with a standard error tells by POWER."""
    threshold = max(t_quantile((1 + confidence) / 2, freedom) * error, math.log1p(min_effect))
    exponent = threshold + t_quantile(POWER, freedom) * error
    return math.expm1(exponent) if exponent < 700 else math.inf


@functools.cache
def t_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t distribution for a probability above one half."""
    low, high = 0.0, 1.0
    while _t_probability(high, freedom) < probability:
        high *= 2
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_probability(middle, freedom) < probability else (low, middle)
    return high


def _t_probability(t: float, freedom: int) -> float:
    """Return P(T <= t) for t >= 0: Abramowitz and Stegun, 26.7.3 and 26.7.4, exact for whole degrees."""
    angle = math.atan2(t, math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for step in range(2 + odd, freedom - 1, 2):
        term *= (step - 1) / step * cosine**2
        total += term
    central = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return (1 + central) / 2
