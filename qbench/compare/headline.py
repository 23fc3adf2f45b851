"""What the pairs say, in sentences computed from their numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from qbench.compare.methods import MethodPair, difference_names
from qbench.compare.results import Result, predictions
from qbench.units import format_bytes

NAMED_DIFFERENCES = 3
"""Factors that a sentence names before it only counts the rest."""

MANY_MODELS = 4
"""Models from which one sentence sums them up first."""

DESCRIBED = (
    "model",
    "precision",
    "r",
    "per_device_train_batch_size",
    "seq_len",
    "gradient_checkpointing",
)
"""The settings that matter most, which `describe` writes out."""

SAME_PERCENT = 0.5
"""Savings below this share are called the same."""

_WORDS = {"plan": "planned", "measurement": "measured"}
_ENDINGS = {
    "oom": "ran out of memory",
    "timeout": "did not end in time",
    "crashed": "crashed",
    "error": "failed",
}

Pairs = list[MethodPair]


def basis(result: Result) -> str:
    """Return how and for what device a result was obtained: 'planned for cuda', 'measured on cpu'."""
    preposition = "for" if result.kind == "plan" else "on"
    return f"{_WORDS[result.kind]} {preposition} {result.device or 'an unknown device'}"


def short_model(name: str) -> str:
    """Return the last part of a model's name or folder."""
    return name.rstrip("/").rsplit("/", 1)[-1] or name


def describe(result: Result, leave_out: Iterable[str] = ()) -> str:
    """Return the settings that matter most as text: 'rank 16, batch 1, 2048 tokens, checkpointing'."""
    point, hidden = result.point, set(leave_out)
    train = point.train
    parts = {
        "model": short_model(point.model),
        "precision": point.precision,
        "r": f"rank {point.lora.r}" if point.lora else "full fine-tuning",
        "per_device_train_batch_size": f"batch {train.per_device_train_batch_size}",
        "seq_len": f"{train.seq_len} tokens",
        "gradient_checkpointing": "checkpointing" if train.gradient_checkpointing else "no checkpointing",
    }
    return ", ".join(text for name, text in parts.items() if name not in hidden)


def headline(pairs: Sequence[MethodPair]) -> list[str]:
    """Return a sentence or two for each model, candidate precision and device among the pairs.

    Where both exist, the measured saving leads and the planned one follows. The settings whose saving is
    the median one are named; several pairs add the range. A candidate that costs memory is said to. Many
    models are summed up first; pairs with an fp32 candidate come last.
    """
    ordered = sorted(pairs, key=lambda pair: not pair.is_qlora)
    by_model = _grouped(ordered, lambda pair: (_name(pair), _base(pair), pair.candidate.device, _model(pair)))
    sentences = [sentence for members in by_model for sentence in _sentences(members)]
    return [*_summaries(ordered), *sentences]


def _grouped(pairs: Iterable[MethodPair], key: Callable[[MethodPair], object]) -> list[Pairs]:
    groups: dict[object, Pairs] = {}
    for pair in pairs:
        groups.setdefault(key(pair), []).append(pair)
    return list(groups.values())


def _name(pair: MethodPair) -> str:
    precision = pair.candidate.point.precision
    return f"QLoRA ({precision})" if pair.is_qlora else f"{precision} LoRA"


def _base(pair: MethodPair) -> str:
    return f"{pair.baseline.point.precision} LoRA"


def _model(pair: MethodPair) -> str:
    return pair.candidate.point.model


def _known(pairs: Iterable[MethodPair]) -> Pairs:
    """Return the pairs whose saving is known, smallest saving first."""
    return sorted((pair for pair in pairs if pair.peak.percent is not None), key=_percent)


def _percent(pair: MethodPair) -> float:
    return pair.peak.percent or 0


def _summaries(pairs: Sequence[MethodPair]) -> list[str]:
    groups = _grouped(pairs, lambda pair: (_name(pair), _base(pair), basis(pair.candidate)))
    return [
        f"{_name(known[0])} needs {_span(known)} memory than {_base(known[0])} over {models} models "
        f"({basis(known[0].candidate)})."
        for known in map(_known, groups)
        if (models := len({_model(pair) for pair in known})) >= MANY_MODELS
    ]


def _sentences(pairs: Pairs) -> list[str]:
    """Return a sentence for each machine that measured, the plan with the first; else one for the plan."""
    measured = [pair for pair in pairs if pair.candidate.kind == "measurement"]
    planned = [pair for pair in pairs if pair.candidate.kind == "plan"]
    if not measured:
        return [_sentence(planned)]
    first, *others = (
        _sentence(members) for members in _grouped(measured, lambda pair: pair.candidate.machine)
    )
    known = _known(planned)
    plan = f" Planned: {_span(known)}{_over(known)}." if known else ""
    return [first + plan, *others]


def _sentence(pairs: Pairs) -> str:
    known = _known(pairs)
    if not known:
        return _sentence_of_endings(pairs[0])
    middle = known[len(known) // 2]
    text = (
        f"{_name(middle)} of {short_model(_model(middle))} needs {format_bytes(middle.peak.candidate)} where "
        f"{_base(middle)} needs {format_bytes(middle.peak.baseline)}: {_verdict(_percent(middle))} "
        f"{_circumstances(middle)}."
    )
    several = f" {_over(known).strip().capitalize()}: {_span(known)}." if len(known) > 1 else ""
    return text + _speed(middle) + _costs(middle) + several + _caution(middle)


def _circumstances(pair: MethodPair) -> str:
    return f"({basis(pair.candidate)}; {describe(pair.candidate, leave_out=('model', 'precision'))})"


def _verdict(percent: float) -> str:
    if abs(percent) < SAME_PERCENT:
        return f"the same within {SAME_PERCENT} %"
    return f"{abs(percent):.0f} % {'less' if percent > 0 else 'more'}"


def _span(known: Pairs) -> str:
    """Return the range of savings of sorted pairs: '41 to 62 % less', '9 % more to 12 % less'."""
    lowest, highest = _percent(known[0]), _percent(known[-1])
    if _verdict(lowest) == _verdict(highest):
        return _verdict(lowest)
    if lowest >= SAME_PERCENT or highest <= -SAME_PERCENT:
        near, far = sorted((abs(lowest), abs(highest)))
        return f"{near:.0f} to {far:.0f} % {'less' if highest > 0 else 'more'}"
    return f"{_verdict(lowest)} to {_verdict(highest)}"


def _over(known: Pairs) -> str:
    return f" over {len(known)} settings" if len(known) > 1 else ""


def _speed(pair: MethodPair) -> str:
    ratio = pair.throughput_ratio
    if ratio is None and any(side.is_void("tokens_per_s") for side in (pair.baseline, pair.candidate)):
        return " Its speed was measured under conditions that do not count (see Validity)."
    return "" if ratio is None else f" It trains at {ratio:.2f} times the speed."


def _costs(pair: MethodPair) -> str:
    if pair.is_qlora and _percent(pair) <= -SAME_PERCENT:
        return " Here quantization costs memory instead of saving it."
    return ""


def _caution(pair: MethodPair) -> str:
    names = difference_names(pair.differs)
    if not names:
        return ""
    rest = len(names) - NAMED_DIFFERENCES
    more = [f"{rest} more"] if rest > 0 else []
    return f" Besides the precision, this differs: {', '.join([*names[:NAMED_DIFFERENCES], *more])}."


def _sentence_of_endings(pair: MethodPair) -> str:
    return (
        f"{_name(pair)} of {short_model(_model(pair))} {_ending(pair.candidate)} where {_base(pair)} "
        f"{_ending(pair.baseline)} {_circumstances(pair)}. No saving can be stated."
    )


def _ending(result: Result) -> str:
    peak = result.value("peak_allocated_bytes")
    if peak is not None:
        return f"needs {format_bytes(peak)}"
    return _ENDINGS.get(result.outcome, f"ended as {result.outcome} without a known peak")


def accuracy_sentence(results: Iterable[Result], metric: str = "peak_allocated_bytes") -> str | None:
    """Return how well the plan met the measurement for one metric, or None when no point has both."""
    errors = [prediction.error_percent(metric) for prediction in predictions(results)]
    sizes = sorted(abs(error) for error in errors if error is not None)
    if not sizes:
        return None
    exact, points = sum(size == 0 for size in sizes), f"{len(sizes)} point{'s' if len(sizes) > 1 else ''}"
    if exact == len(sizes):
        return f"The planned peak equals the measured one to the byte at {points}."
    equal = f", and equal to the byte at {exact}" if exact else ""
    return (
        f"The planned peak is off by {sizes[len(sizes) // 2]:.2g} % at the median of {points} that were also "
        f"measured, by {sizes[-1]:.2g} % at worst{equal}."
    )
