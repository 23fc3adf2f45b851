"""What the pairs say, in sentences computed from their numbers."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from qbench.comparison.headline import Lead, Pairs, grouped, leads, saved_percent
from qbench.comparison.headline import known as known_pairs
from qbench.comparison.intervals import LEAST_PROCESSES
from qbench.comparison.methods import MethodPair, speeds_of
from qbench.comparison.results import Result, predictions
from qbench.units import format_bytes, format_seconds
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

WORTH_A_REASON = 1.02
"""Ratio of speeds from which a sentence says why the quantized base is the faster one."""

NAMED_DIFFERENCES = 3
"""Factors that a sentence names before it only counts the rest."""

_ENDINGS = {
    "oom": "ran out of memory",
    "timeout": "timed out",
    "crashed": "crashed",
    "error": "failed",
}


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
    """Return a statement for each of the `leads` of the pairs.

    The settings with the median saving are named; several pairs add the range, or its ends where it lies on
    both sides of zero. What else differs is added to each statement, or once where it is always the same.
    """
    return _with_cautions([(lead.pairs, _statement(lead)) for lead in leads(pairs)])


def _statement(lead: Lead) -> Statement:
    if lead.form == "many models":
        return _over_models(lead.pairs)
    if lead.form == "other precisions":
        shorts = [_in_short(group, lead.card) for group in grouped(lead.pairs, _name)]
        return Statement(f"The same {'; '.join(shorts)}.")
    planned = [*lead.planned]
    return _sentence(lead.pairs).followed_by(f"Planned: {_span(planned)}{_over(planned)}." if planned else "")


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


def _name(pair: MethodPair) -> str:
    return method_name(pair.candidate)


def _base(pair: MethodPair) -> str:
    return method_name(pair.baseline)


def _model(pair: MethodPair) -> str:
    return short_model(pair.candidate.point.model)


def _over_models(pairs: Pairs) -> Statement:
    known = known_pairs(pairs)
    first, last = known[0], known[-1]
    models = len({pair.candidate.point.model for pair in known})
    shared = circumstances([pair.candidate for pair in known])
    low, high = saving_text(saved_percent(first)), saving_text(saved_percent(last))
    ends = low if low == high else f"{low} ({_model(first)}) to {high} ({_model(last)})"
    others = _others([pair for pair in pairs if pair.peak.percent is None], True)
    text = f"{_name(first)} against {_base(first)} over {models} models ({shared}): memory {ends}."
    return Statement(text, _speed(known), *others)


def _in_short(pairs: Pairs, said_card: str | None) -> str:
    """Return what a precision needs, saves and costs in speed, without the circumstances that were said."""
    known = known_pairs(pairs)
    name = f"with {pairs[0].candidate.point.precision}"
    if not known:
        ours, theirs = ending_text(pairs[0].candidate, True), ending_text(pairs[0].baseline)
        return f"{name}: {ours}" if theirs == "runs" else f"{name}: {ours}, {_base(pairs[0])} {theirs}"
    amount = f"{format_bytes(known[0].peak.candidate)}, " if len(known) == 1 else ""
    ratios, card = speeds_of(_undoubted(known))
    speed = f", {ratio_text(ratios)} the speed" if ratios else ""
    where = f" on {card}" if ratios and card not in (None, said_card) else ""
    return f"{name}: {amount}{_span(known)}{speed}{where}"


def _sentence(pairs: Pairs) -> Statement:
    known = known_pairs(pairs)
    others = _others([pair for pair in pairs if pair.peak.percent is None], bool(known))
    if not known:
        return Statement(*others)
    if saved_percent(known[0]) <= -SAME_PERCENT and saved_percent(known[-1]) >= SAME_PERCENT:
        return Statement(*_both_ways(known), _speed(known), *others)
    middle = known[len(known) // 2]
    text = (
        f"{_name(middle)} of {_model(middle)} needs {format_bytes(middle.peak.candidate)} where "
        f"{_base(middle)} needs {format_bytes(middle.peak.baseline)}: {saving_text(saved_percent(middle))} "
        f"({circumstances([middle.candidate])})."
    )
    several = f"Over {len(known)} settings: {_span(known)}." if len(known) > 1 else ""
    return Statement(text, _speed([middle]), _costs(middle), several, *others)


def _both_ways(known: Pairs) -> tuple[str, str]:
    """Return how often a method saves memory, and how often it costs some, with the extremes."""
    less = sum(saved_percent(pair) >= SAME_PERCENT for pair in known)
    more = sum(saved_percent(pair) <= -SAME_PERCENT for pair in known)
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
    return f"{saving_text(saved_percent(pair))} ({'; '.join(filter(None, (amounts, at)))})"


def _span(known: Pairs) -> str:
    return span_text(saved_percent(known[0]), saved_percent(known[-1]))


def _over(known: Pairs) -> str:
    return f" over {len(known)} settings" if len(known) > 1 else ""


def _undoubted(pairs: Pairs) -> Pairs:
    return [pair for pair in pairs if not pair.speed_doubts]


def _speed(pairs: Pairs) -> str:
    ratios, card = speeds_of(_undoubted(pairs))
    if ratios:
        few = any(pair.has_few_processes for pair in pairs if pair.throughput_ratio is not None)
        doubt = f" (fewer than {LEAST_PROCESSES} processes per side, so its noise is unknown)" if few else ""
        why = _why_faster(pairs[0]) if len(pairs) == 1 else ""
        return f"It trains at {ratio_text(ratios)} the speed{f' on {card}' if card else ''}{doubt}{why}."
    doubts = [doubt for pair in pairs if pair.throughput_ratio is not None for doubt in pair.speed_doubts]
    if doubts:
        return f"Its measured speed is in doubt: {listed([*dict.fromkeys(doubts)])}."
    if any(side.is_void("tokens_per_s") for pair in pairs for side in (pair.baseline, pair.candidate)):
        return "Its speed was measured under conditions that do not count (see Validity)."
    return ""


def _why_faster(pair: MethodPair) -> str:
    """Return why a quantized base trains faster, as far as it is known; empty where it does not.

    A plan has the part of the step that shrinks most. On a CPU the upcast of peft's preparation may be why.
    """
    ratio, card = pair.throughput_ratio, pair.speed_card
    if not pair.is_qlora or ratio is None or ratio < WORTH_A_REASON:
        return ""
    if card is None:
        upcast = any(found.name == "dtypes.lm_head" for found in pair.differs)
        on_cpu = pair.candidate.device == "cpu"
        why = ": its output head runs in fp32, which a CPU may compute faster than bf16; a GPU does not"
        return why if upcast and on_cpu else ""
    times = [
        next((fit.time for fit in side.fits if fit.gpu == card), None)
        for side in (pair.baseline, pair.candidate)
    ]
    if times[0] is None or times[1] is None:
        return ""
    before, after = (time["parts_s"] for time in times if time is not None)
    part = max(before, key=lambda name: before[name] - after.get(name, 0.0))
    return f": {part} takes {format_seconds(after.get(part))} instead of {format_seconds(before[part])}"


def _costs(pair: MethodPair) -> str:
    if pair.is_qlora and saved_percent(pair) <= -SAME_PERCENT:
        return "Here quantization costs memory instead of saving it."
    return ""


def _factors(pairs: Pairs) -> str:
    """Return the names of what differs besides the precision; empty where nothing does."""
    names = difference_names(dict.fromkeys(found for pair in known_pairs(pairs) for found in pair.differs))
    rest = len(names) - NAMED_DIFFERENCES
    more = [f"{rest} more"] if rest > 0 else []
    return listed([*names[:NAMED_DIFFERENCES], *more]) if names else ""


def _caution(pairs: Pairs) -> str:
    factors = _factors(pairs)
    return f"Also different: {factors}." if factors else ""


def _others(pairs: Pairs, after: bool) -> list[str]:
    """Return how pairs ended that have no saving; `after` a sentence on others that have one."""
    groups = grouped(pairs, lambda pair: (ending_text(pair.candidate), ending_text(pair.baseline)))
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

    A null GPU is named as such.
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
