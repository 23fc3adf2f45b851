"""A run as lines of plain text for a terminal: each point planned beside measured, against 16-bit LoRA."""

from __future__ import annotations

from collections.abc import Sequence

from qbench.comparison.methods import MethodPair, pair_results
from qbench.comparison.results import Result, planned_for, varying_settings
from qbench.report.terminal.table import fitted
from qbench.scenario.settings import SETTINGS
from qbench.units import NOT_AVAILABLE, format_bytes, plain_text
from qbench.words.basis import device_text, measured_text
from qbench.words.settings import short_model

PEAK = "peak_allocated_bytes"

MOST_ROWS = 100
"""Rows that a terminal is given."""

DOUBT = "?"
"""Stands beside a measured speed that its own findings doubt."""

_Row = tuple[Result | None, Result | None]


def run_lines(results: Sequence[Result], known: Sequence[MethodPair] | None = None) -> list[str]:
    """Return one row for each point and device: peak planned and measured, what is saved, speed and loss.

    Of more than MOST_ROWS only the first are shown, and the rest counted. `known` are the pairs among the
    results where they are there already.
    """
    every_row = _planned_and_measured(results)
    rows = every_row[:MOST_ROWS]
    pairs = {id(pair.candidate): pair for pair in (pair_results(results) if known is None else known)}
    shown = [measured or planned for planned, measured in rows]
    points = [result for result in shown if result is not None]
    columns: dict[str, list[str]] = {}
    if len({result.point.model for result in points}) > 1:
        columns["model"] = [short_model(result.point.model) for result in points]
    for name in varying_settings(points):
        columns[SETTINGS[name].short] = [plain_text(result.settings.get(name)) for result in points]
    if any(result.device == "null" for result in points):
        columns["device"] = [_device(result) for result in points]
    columns["precision"] = [result.point.precision for result in points]
    columns["Peak planned"] = [_peak(planned) for planned, _ in rows]
    columns[f"Peak {measured_text(points)}"] = [_peak(measured) for _, measured in rows]
    columns["Error"] = [_error(planned, measured) for planned, measured in rows]
    columns["Saved"] = [_saved(result, pairs.get(id(result))) for result in points]
    columns["tokens/s"] = [_rate(result) for result in points]
    columns["Speed"] = [_speed(pairs.get(id(result))) for result in points]
    columns["Loss"] = [_loss(measured) for _, measured in rows]
    rest = len(every_row) - len(rows)
    more = [f"... and {rest:,} more"] if rest else []
    return [*fitted(columns, len(points)), *more, *_doubts(points)]


def _doubts(points: Sequence[Result]) -> list[str]:
    """Return what speaks against the speeds that are marked, a line each."""
    timed = (result for result in points if result.value("tokens_per_s") is not None)
    return [
        f"{DOUBT} speed in doubt: {why}" for why in dict.fromkeys(w for r in timed for w in r.speed_doubts)
    ]


def _marked(text: str, doubts: Sequence[str]) -> str:
    return f"{text} {DOUBT}" if doubts else text


def _planned_and_measured(results: Sequence[Result]) -> list[_Row]:
    """Return (plan, measurement) by point, device and card, in order of first appearance."""
    rows: dict[tuple[object, ...], list[Result | None]] = {}
    for result in results:
        row = rows.setdefault(planned_for(result), [None, None])
        row[0 if result.kind == "plan" else 1] = result
    return [(row[0], row[1]) for row in rows.values()]


def _device(result: Result) -> str:
    card = result.latest.card
    return f"{device_text(result.device)}{f' {card}' if card else ''}"


def _peak(result: Result | None) -> str:
    if result is None:
        return NOT_AVAILABLE
    value = result.value(PEAK)
    # What ended well and has no peak was not watched, as by a callback on a CPU.
    return result.outcome if value is None and result.outcome != "ok" else format_bytes(value)


def _error(planned: Result | None, measured: Result | None) -> str:
    plan = planned.value(PEAK) if planned else None
    real = measured.value(PEAK) if measured else None
    if plan is None or not real:
        return NOT_AVAILABLE
    return "0 B" if plan == real else f"{100 * (plan - real) / real:+.2f} %"


def _saved(result: Result, pair: MethodPair | None) -> str:
    if pair is None and result.point.method == "lora" and result.point.precision in ("bf16", "fp16"):
        return "baseline"
    percent = pair.peak.percent if pair else None
    return NOT_AVAILABLE if percent is None else f"{percent:.1f} %"


def _rate(result: Result) -> str:
    value = result.value("tokens_per_s")
    if value is None:
        return "not valid" if result.is_void("tokens_per_s") else NOT_AVAILABLE
    return (
        _marked(f"{value:,.1f}", result.speed_doubts)
        if result.kind == "measurement"
        else f"{value:,.1f} planned"
    )


def _speed(pair: MethodPair | None) -> str:
    ratio = pair.throughput_ratio if pair else None
    if pair is None or ratio is None:
        return NOT_AVAILABLE
    measured = pair.candidate.kind == "measurement"
    return _marked(f"{ratio:.2f} x", pair.speed_doubts) if measured else f"{ratio:.2f} x planned"


def _loss(measured: Result | None) -> str:
    """Return the loss over the text before and after the steps of the run, in nats per token."""
    record = measured.latest if measured else None
    if record is None or record.loss_before is None or record.loss_after is None:
        return NOT_AVAILABLE
    return f"{record.loss_before:.3f} -> {record.loss_after:.3f}"
