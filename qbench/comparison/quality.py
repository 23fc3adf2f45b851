"""What memory saved costs in quality: errors of quantized weights and losses on one text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qbench.comparison.methods import MethodPair
from qbench.comparison.results import Result
from qbench.words.settings import short_model

_BLOCK = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleError:
    """How far quantization moved one module's weight, as a share of 1."""

    module: str
    error: float

    @property
    def block(self) -> int | None:
        """Number of the layer that the module is in; None outside of the layers."""
        found = _BLOCK.search(self.module)
        return int(found.group(1)) if found else None


def quality_of(result: Result) -> dict[str, Any]:
    """Return detail.quality of the process that compared weights, else of the last one; empty without."""
    found: list[dict[str, Any]] = [r.detail["quality"] for r in result.completed if r.detail.get("quality")]
    compared = [quality for quality in found if quality.get("by_module")]
    return (compared or found or [{}])[-1]


def module_errors(result: Result) -> list[ModuleError]:
    """Return the error of each quantized module, in the order of the model; empty when not compared."""
    by_module = quality_of(result).get("by_module") or {}
    return [ModuleError(module=name, error=error) for name, error in by_module.items() if error is not None]


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


def _weights(pair: MethodPair, ours: dict[str, Any]) -> str:
    error = ours.get("weight_error")
    if error is None:
        return ""
    point = pair.candidate.point
    worst = max(module_errors(pair.candidate), key=lambda module: module.error, default=None)
    most = f", {worst.module} most with {100 * worst.error:.1f} %" if worst else ""
    changed = f"{100 * error:.1f} %"
    return f"{point.precision} moves the quantized weights of {short_model(point.model)} by {changed}{most}."


def _losses(pair: MethodPair, ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    before, after = ours.get("loss_before"), ours.get("loss_after")
    base, trained = theirs.get("loss_before"), theirs.get("loss_after")
    if before is None or after is None or base is None or trained is None:
        return ""
    baseline = f"{pair.baseline.point.precision} LoRA"
    same_steps = ours.get("steps") == theirs.get("steps")
    steps = f"{ours.get('steps')} steps" if same_steps else "unequal numbers of steps"
    return (
        f"On the same text the base in {pair.baseline.point.precision} has a loss of {base:.3f} and in "
        f"{pair.candidate.point.precision} of {before:.3f}; after {steps} {baseline} is at {trained:.3f} and "
        f"QLoRA at {after:.3f} ({_verdict(after - trained)})."
    )


def _verdict(difference: float) -> str:
    if abs(difference) < 0.0005:
        return "the same"
    return f"{abs(difference):.3f} {'higher' if difference > 0 else 'lower'}"
