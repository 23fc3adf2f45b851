"""The noise of a machine, and what it takes to decide in spite of it, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from qbench.comparison.check import Check, Finding
from qbench.comparison.intervals import ALIKE, LEAST_PROCESSES, MOST_PROCESSES, processes_needed, visible
from qbench.comparison.noise import EFFECTS, proposals, undecided_speeds
from qbench.comparison.sequential import FIRST_LOOK
from qbench.comparison.verdicts import MIN_EFFECT, Measured, Tolerance, wanted_effect
from qbench.records.noise import Noise
from qbench.words.phrases import counted

GATE_TEXT = "`qbench gate SCENARIO --baseline REF` measures both sides next to each other until it is clear"


def noise_text(noise: Noise) -> str:
    """Return what is known of a machine's speed as one line, with what it takes to see 5 % and 8 %."""
    spread = noise.spreads.get("step_time_s")
    if spread is None:
        return f"Noise of {noise.machine}: its speed was not valid in every process; calibrate again."
    wishes = "; ".join(
        f"{100 * each.effect:.0f} %: {_count(each.gate)} per side by gate, {_count(each.check)} by check"
        for each in proposals(noise)
    )
    return (
        f"Noise of {noise.machine} ({noise.created_at[:10]}, {noise.processes} processes of {noise.label}): "
        f"{100 * spread.process:.1f} % over processes, {100 * spread.pair:.1f} % between consecutive ones. "
        f"Processes that show a change of {wishes}."
    )


def _count(number: int | None) -> str:
    return "too many" if number is None else str(number)


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
        few = f"with fewer than {LEAST_PROCESSES} processes per side its noise is unknown"
        return f"{start} {few} (measure.repeats, in both runs)."
    # The tolerance of either speed holds for both.
    given = (tolerances[name].relative for name in ("step_time_s", "tokens_per_s") if name in tolerances)
    whose = "its processes" if len(undecided) == 1 else "processes of one"
    differ = f"{whose} differ by {100 * deviation:.1f} %"
    return f"{start} {differ}. {_needed_text(deviation, next(given, MIN_EFFECT))}"


def _needed_text(deviation: float, min_effect: float) -> str:
    """Return how many processes per side show changes of common interest."""
    effects = sorted({wanted_effect(min_effect), *(effect for effect in EFFECTS if effect > min_effect)})
    needed = {f"{100 * effect:g} %": processes_needed(deviation, effect, min_effect) for effect in effects}
    if any(needed.values()):
        each = "; ".join(f"{effect}: {_count(number)}" for effect, number in needed.items())
        return (
            f"Processes per side that check needs to show a change of {each} (measure.repeats, in both runs)."
        )
    error = ALIKE * deviation * math.sqrt(2 / MOST_PROCESSES)
    most = visible(error, MOST_PROCESSES - 1, min_effect)
    return (
        f"No affordable number of processes shows {' or '.join(needed)} by check: "
        f"{MOST_PROCESSES} per side would show {100 * most:.0f} %."
    )


def deciding_budget(found: Check, pair_s: float) -> list[str]:
    """Return as lines what budget of a gate would decide the speeds that it left undecided.

    `pair_s` is what a pair of processes took, in seconds.
    """
    undecided = undecided_speeds(found) + [each for each in found.told if _was_not_measured(each)]
    if not undecided:
        return []
    wanted = [each.reason.wanted for each in undecided if isinstance(each.reason, Measured)]
    needed = [each.needed for each in wanted if each is not None]
    if None in needed:
        return ["No affordable budget decides every step time here: measure on a machine without other work."]
    # Of a point with too few pairs to know its noise nothing is known but that it takes the first look.
    counts = [max(FIRST_LOOK, each or 0) for each in needed] + [FIRST_LOOK] * (len(undecided) - len(needed))
    minutes = math.ceil(1.2 * pair_s * sum(counts) / 60)
    least = "at least " if len(needed) < len(undecided) else ""
    return [
        f"Deciding {counted(len(undecided), 'step time')} takes {least}{max(counts)} pairs of processes: "
        f"--budget {minutes}m --max-processes {max(counts)}."
    ]


def _was_not_measured(finding: Finding) -> bool:
    return finding.metric == "point" and finding.verdict == "ambiguous"
