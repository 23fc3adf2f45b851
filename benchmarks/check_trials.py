"""How often does `qbench check` call equal code worse, with unequal counts of processes and unequal noise?

    python -m benchmarks.check_trials [--trials 2000] [--seed 1] [--out FILE]

Processes are drawn from the noise that intervals.py assumes, or independent ones: logarithms are normal, and
on a machine with moods each correlates by 0.5 with the one before. Each row is decided by the code that
decides for users. Ends with exit code 1 when a row is beyond its bound.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from qbench.comparison.intervals import log_ratio, processes_needed
from qbench.comparison.verdicts import MIN_EFFECT, verdict_of
from qbench.report.markdown import table_text
from qbench.report.table import Column, Table

COUNTS = (3, 5, 10, 30, 100)
NOISE = 0.02
RATIOS = (0.1, 0.3, 1.0, 3.0, 10.0)
MOODS = (0.0, 0.5)
EFFECT = 0.08
MOST_WORSE = 0.015
LEAST_SEEN = 0.95


def processes(source: random.Random, count: int, deviation: float, mood: float) -> list[float]:
    """Return the step times of a run whose code takes 1 s."""
    state, times = source.gauss(0, 1), []
    for _ in range(count):
        times.append(math.exp(deviation * state))
        state = mood * state + math.sqrt(1 - mood**2) * source.gauss(0, 1)
    return times


def share_worse(
    source: random.Random,
    trials: int,
    counts: tuple[int, int],
    noise: tuple[float, float],
    mood: float,
    slower: float,
) -> float:
    """Return the share of trials in which a run that is `slower` by a share is found worse."""
    worse = 0
    for _ in range(trials):
        before = processes(source, counts[0], noise[0], mood)
        now = [(1 + slower) * value for value in processes(source, counts[1], noise[1], mood)]
        ratio = log_ratio(before, now)
        worse += ratio is not None and verdict_of(ratio, MIN_EFFECT, "lower") == "worse"
    return worse / trials


class Row(NamedTuple):
    """What trials of one kind came to; shares in percent."""

    correlation: float
    baseline: int
    run: int
    its_noise: float
    runs_noise: float
    planted: float
    worse: float


COLUMNS = (
    *(Column(title) for title in ("Correlation", "Baseline", "Run")),
    *(Column(title, "%") for title in ("Its noise", "Run's noise", "Planted", "Worse")),
)


def rows(trials: int, seed: int) -> Iterator[Row]:
    """Yield what trials of each kind came to, those of equal code first."""
    for mood, first, second, ratio in itertools.product(MOODS, COUNTS, COUNTS, RATIOS):
        noise = (NOISE, NOISE * ratio)
        source = random.Random(f"{seed} {mood} {first} {second} {ratio}")
        share = share_worse(source, trials, (first, second), noise, mood, 0.0)
        yield _row(mood, first, second, noise, 0.0, share)
    for mood, ratio in itertools.product(MOODS, RATIOS):
        noise = (NOISE / max(1.0, ratio), NOISE * min(1.0, ratio))
        count = processes_needed(math.sqrt((noise[0] ** 2 + noise[1] ** 2) / 2), EFFECT, MIN_EFFECT)
        assert count is not None
        source = random.Random(f"{seed} {mood} {ratio}")
        share = share_worse(source, trials, (count, count), noise, mood, EFFECT)
        yield _row(mood, count, count, noise, EFFECT, share)


def _row(
    mood: float, first: int, second: int, noise: tuple[float, float], planted: float, share: float
) -> Row:
    return Row(mood, first, second, 100 * noise[0], 100 * noise[1], 100 * planted, 100 * share)


def report(trials: int, seed: int) -> tuple[str, bool]:
    """Return the table as Markdown, and whether all rows are within their bounds."""
    found = tuple(rows(trials, seed))
    highest = max(row.worse for row in found if not row.planted)
    lowest = min(row.worse for row in found if row.planted)
    return (
        f"""# Equal code in `qbench check`, with unequal counts and noise

{trials} simulated trials a row, seed {seed}. Equal code is called worse in at most {highest:.2f} % of a row
(bound {100 * MOST_WORSE:g} %); a planted {100 * EFFECT:g} % is found in at least {lowest:.1f} % at the
proposed number of processes (bound {100 * LEAST_SEEN:g} %).
Repeat: `python -m benchmarks.check_trials`.

{table_text(Table(columns=COLUMNS, rows=found))}
""",
        highest <= 100 * MOST_WORSE and lowest >= 100 * LEAST_SEEN,
    )


def main() -> int:
    """Print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    text, within = report(given.trials, given.seed)
    if given.out is not None:
        given.out.write_text(text, encoding="utf-8")
    print(text)
    return 0 if within else 1


if __name__ == "__main__":
    raise SystemExit(main())
