"""The frontier of a sweep in sentences: where QLoRA pays on a card, and which points no other one beats."""

from __future__ import annotations

from collections.abc import Sequence

from qbench.comparison.frontier import FrontierPoint, Payoff, frontier, payoffs
from qbench.comparison.results import Result
from qbench.units import format_bytes, format_value
from qbench.words.settings import short_model

MOST_NAMED = 6
"""Points that no other one beats which are named."""

_AXES = {"seq_len": "tokens", "r": "rank"}


def frontier_sentences(results: Sequence[Result]) -> list[str]:
    """Return a sentence for each card on which QLoRA pays, and one that names the points worth having."""
    points = frontier(results)
    best = sorted((point for point in points if point.is_optimal), key=lambda point: point.memory_bytes)
    said = [_payoff(found) for found in payoffs(results)]
    if len(points) > len(best) > 1:
        named = ", ".join(map(_point, best[:MOST_NAMED]))
        more = f" and {len(best) - MOST_NAMED} more" if len(best) > MOST_NAMED else ""
        said.append(f"Best trade-offs (no other point is as fast with less memory): {named}{more}.")
    return said


def _payoff(found: Payoff) -> str:
    values = f"{found.from_value:,}"
    if found.up_to != found.from_value:
        values += f" to {found.up_to:,}"
    where = f"{_AXES[found.axis]} {values}" if found.axis == "r" else f"{values} {_AXES[found.axis]}"
    text = (
        f"{found.gpu}: {short_model(found.model)} in {found.precision} fits at {where}, where "
        f"{found.baseline_precision} does not"
    )
    if found.speed_ratio is None:
        return f"{text}."
    least, most = (f"{100 * ratio:.0f}" for ratio in found.speed_ratio)
    speed = least if least == most else f"{least} to {most}"
    return f"{text}; where both fit, its speed is {speed} % of {found.baseline_precision}."


def _point(point: FrontierPoint) -> str:
    speed = format_value(point.tokens_per_s, "tokens/s")
    return f"{point.result.point.label} ({format_bytes(point.memory_bytes)}, {speed})"
