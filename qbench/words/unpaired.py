"""What results say by themselves, where nothing is there to compare them with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from qbench.comparison.methods import MANY_MODELS
from qbench.comparison.results import Result, planned_for
from qbench.units import format_bytes
from qbench.words.headline import circumstances, ending_text, method_name
from qbench.words.phrases import Statement, counted, listed
from qbench.words.settings import short_model


def alone_sentences(results: Sequence[Result]) -> list[Statement]:
    """Return what each model needs by method and precision, how others ended, and that nothing is compared.

    The plan of a measured point is left out; many models are given as a range. Where every
    point of a method and model failed, nothing is said: an error is no result.
    """
    measured = {
        planned_for(result) for result in results if result.kind == "measurement" and not result.failed
    }
    groups: dict[tuple[object, ...], list[Result]] = {}
    for result in results:
        if result.kind == "measurement" or planned_for(result) not in measured:
            key = (result.point.method, result.point.precision, result.kind, result.device, result.machine)
            groups.setdefault(key, []).append(result)
    said = [sentence for members in groups.values() for sentence in _of_method(members)]
    if sum(not result.failed for result in results) > 1:
        said.append(
            Statement(
                "QLoRA and LoRA are not compared: no QLoRA point has a 16-bit LoRA point of equal settings."
            )
        )
    return said


def _of_method(results: list[Result]) -> list[Statement]:
    by_model: dict[str, list[Result]] = {}
    for result in results:
        by_model.setdefault(result.point.model, []).append(result)
    many = len(by_model) >= MANY_MODELS
    told = [results] if many else by_model.values()
    return [_sentence(members, many) for members in told if not all(result.failed for result in members)]


def _sentence(results: list[Result], many_models: bool) -> Statement:
    """Return the span of peaks of some results, and how those without one ended.

    They are of one model, or of many.
    """
    known = sorted((result for result in results if _peak(result)), key=_peak)
    ended = [result for result in results if not _peak(result)]
    shared = circumstances(known or results)
    model = "" if many_models else f" of {short_model(results[0].point.model)}"
    subject = f"{method_name(results[0], begins=True)}{model}"
    if not known:
        return Statement(f"{subject} {_endings(ended, many_models)} ({shared}).")
    low, high = (f"{format_bytes(_peak(end))}{_of(end, many_models)}" for end in (known[0], known[-1]))
    span = low if low == high else f"{low} to {high}"
    needed = " ".join(filter(None, (subject, "needs", span, _over(known, many_models))))
    return Statement(f"{needed} ({shared}).", _others(ended, many_models))


def _over(known: list[Result], many_models: bool) -> str:
    models = len({result.point.model for result in known})
    if many_models and models > 1:
        return f"over {models} models"
    return f"over {counted(len(known), 'setting')}" if len(known) > 1 else ""


def _endings(ended: list[Result], many_models: bool) -> str:
    """Return each ending, the most frequent first, as 'ran out of memory at 2 settings and crashed at 1'."""
    (first, count), *rest = Counter(map(ending_text, ended)).most_common()
    if len(ended) == 1:
        return first
    what = "point" if many_models else "setting"
    return listed([f"{first} at {counted(count, what)}", *(f"{text} at {n:,}" for text, n in rest)])


def _others(ended: list[Result], many_models: bool) -> str:
    """Return how results without a peak ended, after those that have one; empty if there are none."""
    endings = list(dict.fromkeys(map(ending_text, ended)))
    if len(endings) > 1:
        return f"At the others it {_endings(ended, many_models)}."
    what = f"other {'point' if many_models else 'setting'}"
    return f"At {counted(len(ended), what)} it {endings[0]}." if endings else ""


def _of(result: Result, many_models: bool) -> str:
    return f" ({short_model(result.point.model)})" if many_models else ""


def _peak(result: Result) -> float:
    return result.value("peak_allocated_bytes") or 0
