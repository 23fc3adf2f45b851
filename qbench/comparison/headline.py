"""Which pairs lead a report, together and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from qbench.comparison.methods import MANY_MODELS, PREFERRED, MethodPair, speeds_of

Pairs = list[MethodPair]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead:
    """Pairs that one statement covers; at least one."""

    form: Literal["many models", "one precision", "other precisions"]
    """A precision over many models, one on one model, or all others on that model."""
    pairs: Pairs
    planned: Sequence[MethodPair] = ()
    """The same precision as planned, where the pairs were measured; those with a known saving."""
    card: str | None = None
    """Of other precisions: the card that the speed of the one before is planned for."""


def leads(pairs: Sequence[MethodPair]) -> list[Lead]:
    """Return what to state, in order; the precision that represents QLoRA first leads.

    A precision over at least MANY_MODELS models is one lead. Else each model and device has one for its first
    precision, by machine, and one for the others. Measured pairs go before planned ones, which are beside the
    first of them, or lead where nothing was measured.
    """
    found: list[Lead] = []
    rest: Pairs = []
    for members in grouped(sorted(pairs, key=_importance), lambda pair: (_precisions(pair), _circle(pair))):
        if len({pair.candidate.point.model for pair in known(members)}) >= MANY_MODELS:
            found.append(Lead(form="many models", pairs=members))
        else:
            rest += members
    for members in grouped(rest, _subject):
        found += _of_model(members)
    return found


def _of_model(pairs: Pairs) -> list[Lead]:
    measured = [pair for pair in pairs if pair.candidate.kind == "measurement"]
    planned = [pair for pair in pairs if pair.candidate.kind == "plan"]
    found: list[Lead] = []
    for on_machine in grouped(measured or planned, _circle):
        first, *others = grouped(on_machine, _precisions)
        same = [pair for pair in planned if _precisions(pair) == _precisions(first[0])]
        beside = known(same) if measured and not found else ()
        found.append(Lead(form="one precision", pairs=first, planned=beside))
        if others:
            members = [pair for group in others for pair in group]
            found.append(Lead(form="other precisions", pairs=members, card=speeds_of(first)[1]))
    return found


def known(pairs: Iterable[MethodPair]) -> Pairs:
    """Return the pairs whose saving is known, smallest saving first."""
    return sorted((pair for pair in pairs if pair.peak.percent is not None), key=saved_percent)


def saved_percent(pair: MethodPair) -> float:
    """Return the saving of peak memory in percent; 0 where it is unknown."""
    return pair.peak.percent or 0


def grouped(pairs: Iterable[MethodPair], key: Callable[[MethodPair], object]) -> list[Pairs]:
    """Return the pairs in groups of equal keys, in order of first appearance."""
    groups: dict[object, Pairs] = {}
    for pair in pairs:
        groups.setdefault(key(pair), []).append(pair)
    return list(groups.values())


def _importance(pair: MethodPair) -> int:
    precision = pair.candidate.point.precision
    return PREFERRED.index(precision) if precision in PREFERRED else len(PREFERRED)


def _circle(pair: MethodPair) -> tuple[object, ...]:
    return pair.candidate.kind, pair.candidate.device, pair.candidate.machine


def _base(pair: MethodPair) -> str:
    return pair.baseline.point.precision


def _subject(pair: MethodPair) -> tuple[object, ...]:
    return pair.candidate.point.model, _base(pair), pair.candidate.device


def _precisions(pair: MethodPair) -> tuple[str, str]:
    return pair.candidate.point.precision, _base(pair)
