"""The noise of a machine, from processes of the same code, and what it takes to see through it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from qbench.comparison.check import Check, Finding
from qbench.comparison.intervals import processes_needed
from qbench.comparison.results import number_of
from qbench.comparison.sequential import SidePair, paired_ratio, pairs_needed
from qbench.comparison.verdicts import MIN_EFFECT
from qbench.records.metrics import METRICS, SCALARS
from qbench.records.noise import Noise, Spread
from qbench.records.record import Record

EFFECTS = (0.05, 0.08)
"""Changes of speed, as shares, for which the number of processes is given."""

CAUTION = 0.9
"""Chance with which the true deviation is below the one that is planned with."""

LEAST_PROCESSES = 8
"""Processes of one point from which its noise is estimated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """How many processes per side show a change; None where no affordable number does."""

    effect: float
    check: int | None
    """For `qbench check`."""
    gate: int | None
    """For `qbench gate`, whose sides are measured in pairs."""


def noise_of(records: Sequence[Record]) -> Noise | None:
    """Return the noise that processes of one point show, given in the order in which they ran.

    None when fewer than LEAST_PROCESSES ended ok.
    """
    done = [record for record in records if record.outcome == "ok"]
    if len(done) < LEAST_PROCESSES:
        return None
    found = {name: spread for name in SCALARS if (spread := _spread(done, name)) is not None}
    return Noise(
        device=str(done[-1].device),
        machine=str(done[-1].device_name),
        label=done[-1].point.label,
        processes=len(done),
        spreads=found,
    )


def _spread(records: Sequence[Record], metric: str) -> Spread | None:
    if METRICS[metric].gate == "exact" or metric == "loss":
        return None
    numbers = [number_of(record, metric) for record in records]
    known = [number for number in numbers if number is not None and number > 0]
    if len(known) < len(records):
        return None
    # A B, B A: as a gate runs them, so that a drift adds to the pairs what it would add there.
    pairs: list[SidePair] = [
        (known[at], known[at + 1]) if at % 4 == 0 else (known[at + 1], known[at])
        for at in range(0, len(known) - 1, 2)
    ]
    ratio = paired_ratio(pairs, 0.5)
    assert ratio is not None  # Four pairs above zero have one.
    return Spread(process=statistics.stdev(map(math.log, known)), pair=ratio.deviation)


def proposals(noise: Noise, min_effect: float = MIN_EFFECT) -> list[Proposal]:
    """Return for each of EFFECTS what it takes to see it with 95 % power at 1 % false alarms."""
    spread = noise.spreads.get("step_time_s")
    if spread is None:
        return []
    process = cautious(spread.process, noise.processes - 1)
    pair = cautious(spread.pair, noise.processes // 2 - 1)
    return [
        Proposal(
            effect=effect,
            check=processes_needed(process, effect, min_effect),
            gate=pairs_needed(pair, effect, min_effect),
        )
        for effect in EFFECTS
    ]


def cautious(deviation: float, freedom: int) -> float:
    """Return what a deviation, estimated with some degrees of freedom, is below with a chance of CAUTION.

    By the quantile of chi squared in Wilson and Hilferty's approximation (Abramowitz and Stegun, 26.4.17).
    """
    z, spread = statistics.NormalDist().inv_cdf(1 - CAUTION), 2 / (9 * freedom)
    chi_squared = freedom * (1 - spread + z * math.sqrt(spread)) ** 3
    return deviation * math.sqrt(freedom / chi_squared)


def undecided_speeds(found: Check) -> list[Finding]:
    """Return the step times on which noise kept a check from a verdict.

    One without a number is not among them: it is not valid, which more processes would not change.
    """
    return [
        each
        for each in found.told
        if each.metric == "step_time_s" and each.verdict == "ambiguous" and each.run is not None
    ]
