"""What the pairs say, in sentences computed from their numbers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from qbench.comparison.intervals import LEAST_PROCESSES
from qbench.comparison.methods import MANY_MODELS, PREFERRED, MethodPair, speeds_of
from qbench.comparison.results import Result, predictions
from qbench.units import format_bytes
from qbench.words.basis import where
from qbench.words.phrases import (
    SAME_PERCENT,
    Statement,
    counted,
    difference_names,
    listed,
    ratio_text,
    saving_text,
    span_text,
)
from qbench.words.settings import DESCRIBED, describe, short_model

NAMED_DIFFERENCES = 3
"""Factors that a sentence names before it only counts the rest."""

_ENDINGS = {
    "oom": "ran out of memory",
    "timeout": "did not end in time",
    "crashed": "crashed",
    "error": "failed",
}

Pairs = list[MethodPair]


def method_name(result: Result, *, begins: bool = False) -> str:
    """Return the method of a result with its precision, at the beginning of a sentence or within it.

    For example 'QLoRA (nf4)' or 'bf16 LoRA'.
    """
    precision = result.point.precision
    names = {"qlora": f"QLoRA ({precision})", "lora": f"{precision} LoRA"}
    return names.get(result.point.method, f"{'Full' if begins else 'full'} fine-tuning in {precision}")


def circumstances(results: Sequence[Result]) -> str:
    """Return how some results were obtained, and the settings that matter most of those that they share."""
    first, *others = results
    varying = [n for n in DESCRIBED if any(o.settings.get(n) != first.settings.get(n) for o in others)]
    return "; ".join(filter(None, (where(first), describe(first.point, ("model", "precision", *varying)))))


def headline(pairs: Sequence[MethodPair]) -> list[Statement]:
    """Return a sentence or two for each model and device among the pairs, and one for its other precisions.

    The precision that speaks for QLoRA first is told at length. Where both exist, the measured saving leads
    and the planned one follows. The settings whose saving is the median one are named; several pairs add the
    range, and one on both sides of zero is told by its ends. Of many models one sentence tells the range.
    What differs besides the precision is told with each sentence, or once where it is always the same.
    """
    ordered = sorted(pairs, key=_importance)
    told: list[tuple[Pairs, Statement]] = []
    rest: Pairs = []
    for members in _grouped(ordered, lambda pair: (_name(pair), _base(pair), _circle(pair))):
        if len({pair.candidate.point.model for pair in _known(members)}) >= MANY_MODELS:
            told.append((members, _over_models(members)))
        else:
            rest += members
    for members in _grouped(
        rest, lambda pair: (pair.candidate.point.model, _base(pair), pair.candidate.device)
    ):
        told += _of_model(members)
    return _with_cautions(told)


def _with_cautions(told: Sequence[tuple[Pairs, Statement]]) -> list[Statement]:
    factors = [_factors(members) for members, _ in told if members[0].is_qlora]
    if len(factors) < 2 or len(set(factors)) > 1 or not factors[0]:
        return [text.followed_by(_caution(members)) for members, text in told]
    sentences = [
        text if members[0].is_qlora else text.followed_by(_caution(members)) for members, text in told
    ]
    # The same for each is said once.
    shared = f"Besides the precision, QLoRA points differ from their LoRA points in {factors[0]}."
    return [*sentences, Statement(shared)]


def _circle(pair: MethodPair) -> tuple[object, ...]:
    return pair.candidate.kind, pair.candidate.device, pair.candidate.machine


def _importance(pair: MethodPair) -> int:
    precision = pair.candidate.point.precision
    return PREFERRED.index(precision) if precision in PREFERRED else len(PREFERRED)


def _grouped(pairs: Iterable[MethodPair], key: Callable[[MethodPair], object]) -> list[Pairs]:
    groups: dict[object, Pairs] = {}
    for pair in pairs:
        groups.setdefault(key(pair), []).append(pair)
    return list(groups.values())


def _name(pair: MethodPair) -> str:
    return method_name(pair.candidate)


def _base(pair: MethodPair) -> str:
    return method_name(pair.baseline)


def _model(pair: MethodPair) -> str:
    return short_model(pair.candidate.point.model)


def _known(pairs: Iterable[MethodPair]) -> Pairs:
    """Return the pairs whose saving is known, smallest saving first."""
    return sorted((pair for pair in pairs if pair.peak.percent is not None), key=_percent)


def _percent(pair: MethodPair) -> float:
    return pair.peak.percent or 0


def _over_models(pairs: Pairs) -> Statement:
    known = _known(pairs)
    first, last = known[0], known[-1]
    models = len({pair.candidate.point.model for pair in known})
    shared = circumstances([pair.candidate for pair in known])
    low, high = saving_text(_percent(first)), saving_text(_percent(last))
    ends = low if low == high else f"{low} ({_model(first)}) to {high} ({_model(last)})"
    others = _others([pair for pair in pairs if pair.peak.percent is None], True)
    text = f"{_name(first)} against {_base(first)} over {models} models ({shared}): memory {ends}."
    return Statement(text, _speed(known), *others)


def _of_model(pairs: Pairs) -> list[tuple[Pairs, Statement]]:
    """Return what is told of one model: the first precision on each machine that measured, then the others.

    A plan is told with the first measurement, or alone where there is none.
    """
    measured = [pair for pair in pairs if pair.candidate.kind == "measurement"]
    planned = [pair for pair in pairs if pair.candidate.kind == "plan"]
    told: list[tuple[Pairs, Statement]] = []
    for on_machine in _grouped(measured or planned, _circle):
        first, *others = _grouped(on_machine, _name)
        told.append((first, _sentence(first)))
        if others:
            members = [pair for group in others for pair in group]
            shorts = [_in_short(group, speeds_of(first)[1]) for group in others]
            told.append((members, Statement(f"The same {'; '.join(shorts)}.")))
    known = _known(pair for pair in planned if _name(pair) == _name(told[0][0][0]))
    if measured and known:
        plan = f"Planned: {_span(known)}{_over(known)}."
        told[0] = (told[0][0], told[0][1].followed_by(plan))
    return told


def _in_short(pairs: Pairs, said_card: str | None) -> str:
    """Return what a precision needs, saves and costs in speed, without the circumstances that were said."""
    known = _known(pairs)
    name = f"with {pairs[0].candidate.point.precision}"
    if not known:
        ours, theirs = ending_text(pairs[0].candidate, True), ending_text(pairs[0].baseline)
        return f"{name}: {ours}" if theirs == "runs" else f"{name}: {ours}, {_base(pairs[0])} {theirs}"
    amount = f"{format_bytes(known[0].peak.candidate)}, " if len(known) == 1 else ""
    ratios, card = speeds_of(known)
    speed = f", {ratio_text(ratios)} the speed" if ratios else ""
    where = f" on {card}" if ratios and card not in (None, said_card) else ""
    return f"{name}: {amount}{_span(known)}{speed}{where}"


def _sentence(pairs: Pairs) -> Statement:
    known = _known(pairs)
    others = _others([pair for pair in pairs if pair.peak.percent is None], bool(known))
    if not known:
        return Statement(*others)
    if _percent(known[0]) <= -SAME_PERCENT and _percent(known[-1]) >= SAME_PERCENT:
        return Statement(*_both_ways(known), _speed(known), *others)
    middle = known[len(known) // 2]
    text = (
        f"{_name(middle)} of {_model(middle)} needs {format_bytes(middle.peak.candidate)} where "
        f"{_base(middle)} needs {format_bytes(middle.peak.baseline)}: {saving_text(_percent(middle))} "
        f"({circumstances([middle.candidate])})."
    )
    several = f"Over {len(known)} settings: {_span(known)}." if len(known) > 1 else ""
    return Statement(text, _speed([middle]), _costs(middle), several, *others)


def _both_ways(known: Pairs) -> tuple[str, str]:
    """Return how often a method saves memory, and how often it costs some, with the extremes."""
    less = sum(_percent(pair) >= SAME_PERCENT for pair in known)
    more = sum(_percent(pair) <= -SAME_PERCENT for pair in known)
    shared = circumstances([pair.candidate for pair in known])
    best, worst = known[-1], known[0]
    return (
        f"{_name(best)} of {_model(best)} needs less memory than {_base(best)} at {less} of "
        f"{counted(len(known), 'setting')} and more at {more} ({shared}).",
        f"At best {_end(best, known)}, at worst {_end(worst, known)}.",
    )


def _end(pair: MethodPair, known: Pairs) -> str:
    """Return one end of a range: the share, both amounts, and the settings in which the range varies."""
    same = [name for name in DESCRIBED if len({other.candidate.settings.get(name) for other in known}) == 1]
    at = describe(pair.candidate.point, same)
    candidate, baseline = format_bytes(pair.peak.candidate), format_bytes(pair.peak.baseline)
    amounts = f"{candidate} instead of {baseline}"
    return f"{saving_text(_percent(pair))} ({'; '.join(filter(None, (amounts, at)))})"


def _span(known: Pairs) -> str:
    return span_text(_percent(known[0]), _percent(known[-1]))


def _over(known: Pairs) -> str:
    return f" over {len(known)} settings" if len(known) > 1 else ""


def _speed(pairs: Pairs) -> str:
    ratios, card = speeds_of(pairs)
    if ratios:
        few = any(pair.has_few_processes for pair in pairs if pair.throughput_ratio is not None)
        doubt = f" (fewer than {LEAST_PROCESSES} processes a side, so its noise is not known)" if few else ""
        return f"It trains at {ratio_text(ratios)} the speed{f' on {card}' if card else ''}{doubt}."
    if any(side.is_void("tokens_per_s") for pair in pairs for side in (pair.baseline, pair.candidate)):
        return "Its speed was measured under conditions that do not count (see Validity)."
    return ""


def _costs(pair: MethodPair) -> str:
    if pair.is_qlora and _percent(pair) <= -SAME_PERCENT:
        return "Here quantization costs memory instead of saving it."
    return ""


def _factors(pairs: Pairs) -> str:
    """Return the names of what differs besides the precision; empty where nothing does."""
    names = difference_names(dict.fromkeys(found for pair in _known(pairs) for found in pair.differs))
    rest = len(names) - NAMED_DIFFERENCES
    more = [f"{rest} more"] if rest > 0 else []
    return listed([*names[:NAMED_DIFFERENCES], *more]) if names else ""


def _caution(pairs: Pairs) -> str:
    factors = _factors(pairs)
    return f"Also different: {factors}." if factors else ""


def _others(pairs: Pairs, after: bool) -> list[str]:
    """Return how pairs ended that have no saving; `after` a sentence on others that have one."""
    groups = _grouped(pairs, lambda pair: (ending_text(pair.candidate), ending_text(pair.baseline)))
    texts: list[str] = []
    for members in groups:
        known_before = after or bool(texts)
        texts += [_at_others(members)] if known_before else _first_ending(members)
    return texts


def _first_ending(pairs: Pairs) -> list[str]:
    pair = pairs[0]
    rest = f"The same holds at {counted(len(pairs) - 1, 'other setting')}." if len(pairs) > 1 else ""
    ours, theirs = ending_text(pair.candidate), ending_text(pair.baseline)
    how = f"({circumstances([pair.candidate])})"
    if ours == theirs:
        return [f"Both {_name(pair)} and {_base(pair)} of {_model(pair)} {ours} {how}.", rest]
    ours, theirs = ending_text(pair.candidate, True), ending_text(pair.baseline, True)
    said = f"{_name(pair)} of {_model(pair)} {ours} where {_base(pair)} {theirs} {how}."
    return [said, rest, "No saving can be stated."]


def _at_others(pairs: Pairs) -> str:
    pair = pairs[0]
    at = f"At {counted(len(pairs), 'other setting')}"
    ours, theirs = ending_text(pair.candidate), ending_text(pair.baseline)
    if ours == theirs:
        return f"{at} both {ours}."
    return f"{at} {_name(pair)} {ours} where {_base(pair)} {theirs}."


def ending_text(result: Result, with_peak: bool = False) -> str:
    """Return how a result without a peak ended; one that has a peak runs, or needs it."""
    peak = result.value("peak_allocated_bytes")
    if peak is not None:
        return f"needs {format_bytes(peak)}" if with_peak else "runs"
    return _ENDINGS.get(result.outcome, f"ended as {result.outcome} without a known peak")


def accuracy_sentence(results: Iterable[Result], metric: str = "peak_allocated_bytes") -> str | None:
    """Return how well the plan met the measurement for one metric, or None when no point has both.

    A null GPU is told apart from what was measured.
    """
    met: dict[bool, list[float]] = {}
    for prediction in predictions(results):
        error = prediction.error_percent(metric)
        if error is not None:
            met.setdefault(prediction.measured.device == "null", []).append(abs(error))
    return " ".join(_accuracy(sorted(sizes), is_null) for is_null, sizes in sorted(met.items())) or None


def _accuracy(sizes: Sequence[float], is_null: bool) -> str:
    run = "run on a null GPU" if is_null else "measured"
    other = "that of the null GPU" if is_null else "the measured one"
    exact = sum(size == 0 for size in sizes)
    points = f"the one point that was also {run}" if len(sizes) == 1 else f"{len(sizes):,} points"
    if exact == len(sizes):
        where_met = points if len(sizes) == 1 or not is_null else f"{points} that were run on one"
        return f"The planned peak equals {other} to the byte at {where_met}."
    if len(sizes) == 1:
        return f"The planned peak is off by {sizes[0]:.2g} % at {points}."
    equal = f", and equal to the byte at {exact:,}" if exact else ""
    return (
        f"The planned peak is off by {statistics.median(sizes):.2g} % at the median of {points} that were "
        f"also {run}, by {sizes[-1]:.2g} % at worst{equal}."
    )
