"""What memory saved costs in quality, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from qbench.comparison.methods import MethodPair
from qbench.comparison.quality import module_errors, quality_of
from qbench.records.parts import Quality
from qbench.words.settings import short_model


def quality_sentences(pairs: Sequence[MethodPair]) -> list[str]:
    """Return a sentence for each measured QLoRA candidate with real weights: their error, and both losses."""
    sentences = []
    for pair in pairs:
        if pair.is_qlora and pair.candidate.kind == "measurement":
            ours, theirs = quality_of(pair.candidate), quality_of(pair.baseline)
            parts = [_weights(pair, ours), _losses(pair, ours, theirs)]
            if any(parts):
                sentences.append(" ".join(filter(None, parts)))
    return sentences


def _weights(pair: MethodPair, ours: Quality) -> str:
    error = ours.get("weight_error")
    if error is None:
        return ""
    point = pair.candidate.point
    worst = max(module_errors(pair.candidate), key=lambda module: module.error, default=None)
    most = f", most in {worst.module} ({100 * worst.error:.1f} %)" if worst else ""
    changed = f"{100 * error:.1f} %"
    return (
        f"{point.precision} changes the quantized weights of {short_model(point.model)} by {changed}{most}."
    )


def _losses(pair: MethodPair, ours: Quality, theirs: Quality) -> str:
    before, after = ours.get("loss_before"), ours.get("loss_after")
    base, trained = theirs.get("loss_before"), theirs.get("loss_after")
    if before is None or after is None or base is None or trained is None:
        return ""
    same_steps = ours.get("steps") == theirs.get("steps")
    steps = f"{ours.get('steps')} steps" if same_steps else "unequal numbers of steps"
    ours_in, theirs_in = pair.candidate.point.precision, pair.baseline.point.precision
    return (
        f"On the same text, the base has a loss of {base:.3f} in {theirs_in} and {before:.3f} in {ours_in}; "
        f"after {steps}, {theirs_in} LoRA reaches {trained:.3f} and QLoRA {after:.3f} "
        f"({_against(after - trained)})."
    )


def _against(difference: float) -> str:
    if abs(difference) < 0.0005:
        return "the same"
    return f"{abs(difference):.3f} {'higher' if difference > 0 else 'lower'}"
