"""The noise of a machine, from processes of the same code, and what it takes to see through it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qbench.comparison.check import Check, Finding
from qbench.comparison.intervals import ALIKE, MOST_PROCESSES, processes_needed, visible
from qbench.comparison.intervals import LEAST_PROCESSES as LEAST_A_SIDE
from qbench.comparison.results import number_of
from qbench.comparison.sequential import Pair, paired_ratio, pairs_needed
from qbench.comparison.verdicts import MIN_EFFECT, Tolerance, wanted_effect
from qbench.records.metrics import METRICS, SCALARS
from qbench.records.noise import Noise, Spread
from qbench.records.record import Record
from qbench.words.phrases import counted

EFFECTS = (0.05, 0.08)
"""Changes of speed, as shares, that the number of processes is told for."""

CAUTION = 0.9
"""Chance with which the true deviation is below the one that is planned with."""

LEAST_PROCESSES = 8
"""Processes of one point that its noise is told from."""

GATE_TEXT = "`qbench gate SCENARIO --baseline REF` measures both sides next to each other until it is clear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """How many processes a side show a change; None where no affordable number does."""

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
    environment = done[-1].environment
    return Noise(
        device=str(environment.get("device")),
        machine=str(environment.get("device_name")),
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
    pairs: list[Pair] = [
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


def noise_text(noise: Noise) -> str:
    """Return what is known of a machine's speed as one line, with what it takes to see 5 % and 8 %."""
    spread = noise.spreads.get("step_time_s")
    if spread is None:
        return f"Noise of {noise.machine}: its speed was not valid in every process; calibrate it again."
    wishes = "; ".join(
        f"{100 * each.effect:.0f} %: {_count(each.gate)} a side by gate, {_count(each.check)} by check"
        for each in proposals(noise)
    )
    return (
        f"Noise of {noise.machine} ({noise.created_at[:10]}, {noise.processes} processes of {noise.label}): "
        f"{100 * spread.process:.1f} % over processes, {100 * spread.pair:.1f} % between neighbours. "
        f"Processes that show a change of {wishes}."
    )


def _count(number: int | None) -> str:
    return "too many" if number is None else str(number)


def undecided_speeds(found: Check) -> list[Finding]:
    """Return the step times on which noise kept a check from a verdict.

    One without a number is none of them: it is not valid, which more processes would not change.
    """
    return [
        each
        for each in found.told
        if each.metric == "step_time_s" and each.verdict == "ambiguous" and each.run is not None
    ]


def advice(
    undecided: Sequence[Finding], known: Sequence[Noise], tolerances: Mapping[str, Tolerance]
) -> list[str]:
    """Return as lines what it takes to decide on step times that a check left undecided.

    What is `known` of the machine's noise goes before what the few processes of the check show of it.
    """
    if known:
        return [*map(noise_text, known), f"{GATE_TEXT}."]
    calibrate = "`qbench calibrate --noise` says how many processes that takes here"
    return [_wish_text(undecided, tolerances), f"{GATE_TEXT}; {calibrate}."]


def _wish_text(undecided: Sequence[Finding], tolerances: Mapping[str, Tolerance]) -> str:
    """Return how many processes show a change, by the one of the points whose processes differ most."""
    start = f"step_time_s is ambiguous at {counted(len(undecided), 'point')}:"
    deviation = max((each.deviation for each in undecided if each.deviation is not None), default=None)
    if deviation is None:
        few = f"with fewer than {LEAST_A_SIDE} processes a side its noise is not known"
        return f"{start} {few} (measure.repeats, in both runs)."
    # The tolerance of either speed holds for both.
    given = (tolerances[name].relative for name in ("step_time_s", "tokens_per_s") if name in tolerances)
    whose = "its processes" if len(undecided) == 1 else "processes of one"
    differ = f"{whose} differ by {100 * deviation:.1f} %"
    return f"{start} {differ}. {_needed_text(deviation, next(given, MIN_EFFECT))}"


def _needed_text(deviation: float, min_effect: float) -> str:
    """Return how many processes a side show the changes that a person asks about."""
    effects = sorted({wanted_effect(min_effect), *(effect for effect in EFFECTS if effect > min_effect)})
    needed = {f"{100 * effect:g} %": processes_needed(deviation, effect, min_effect) for effect in effects}
    if any(needed.values()):
        each = "; ".join(f"{effect}: {_count(number)}" for effect, number in needed.items())
        return f"Processes a side with which check shows a change of {each} (measure.repeats, in both runs)."
    error = ALIKE * deviation * math.sqrt(2 / MOST_PROCESSES)
    most = visible(error, 2 * MOST_PROCESSES - 2, min_effect)
    return (
        f"No affordable number of processes shows {' or '.join(needed)} by check: "
        f"{MOST_PROCESSES} a side would show {100 * most:.0f} %."
    )
