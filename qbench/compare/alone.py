"""What results say by themselves, where nothing is there to compare them with."""

from __future__ import annotations

from collections.abc import Sequence

from qbench.compare.headline import MANY_MODELS, circumstances, ending_text, method_name, short_model
from qbench.compare.results import Result
from qbench.units import format_bytes


def alone_sentences(results: Sequence[Result]) -> list[str]:
    """Return what each model needs by method and precision, and that nothing is compared.

    Where a point was measured, its plan is not told; of many models the range is.
    """
    measured = {(result.point, result.device) for result in results if result.kind == "measurement"}
    groups: dict[tuple[object, ...], list[Result]] = {}
    for result in results:
        if result.kind == "measurement" or (result.point, result.device) not in measured:
            key = (method_name(result), result.kind, result.device, result.machine)
            groups.setdefault(key, []).append(result)
    said = [sentence for members in groups.values() for sentence in _of_method(members)]
    if len(results) > 1:
        said.append("No QLoRA point has a 16-bit LoRA point of equal settings, so the two are not compared.")
    return said


def _of_method(results: list[Result]) -> list[str]:
    by_model: dict[str, list[Result]] = {}
    for result in results:
        by_model.setdefault(result.point.model, []).append(result)
    if len(by_model) >= MANY_MODELS:
        return [_sentence(results, f"over {len(by_model)} models")]
    return [_sentence(members, "") for members in by_model.values()]


def _sentence(results: list[Result], models: str) -> str:
    """Return the span of peaks of some results, which are of one model unless `models` says otherwise."""
    known = sorted((result for result in results if _peak(result)), key=_peak)
    shared = circumstances(known or results)
    name = method_name(results[0])
    subject = name.replace("full", "Full") + ("" if models else f" of {short_model(results[0].point.model)}")
    if not known:
        return f"{subject} {ending_text(results[0])} ({shared})."
    low, high = (f"{format_bytes(_peak(end))}{_of(end, models)}" for end in (known[0], known[-1]))
    over = models or (f"over {len(known)} settings" if len(known) > 1 else "")
    span = low if low == high else f"{low} to {high}"
    return f"{' '.join(filter(None, (subject, 'needs', span, over)))} ({shared})."


def _of(result: Result, models: str) -> str:
    return f" ({short_model(result.point.model)})" if models else ""


def _peak(result: Result) -> float:
    return result.value("peak_allocated_bytes") or 0
