"""The tables of a report's records: pairs, points, raw records, failures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qbench.comparison.methods import MethodPair
from qbench.comparison.results import (
    MEMORY_METRICS,
    Prediction,
    Result,
    predictions,
    varying_settings,
)
from qbench.records.metrics import METRICS
from qbench.report.table import NAMED_RANGES, Draft, RecordRanges, Table, Value
from qbench.scenario.settings import SETTINGS
from qbench.units import NOT_AVAILABLE, plain_text
from qbench.words.basis import NULL_NOTE, basis, device_text, kind_text, measured_text
from qbench.words.phrases import difference_names, difference_text, listed
from qbench.words.settings import short_model

Numbers = Mapping[int, int]
"""Number of each record by its `id`: its place in the report, from 1; the CSV has the same."""

POINT_METRICS = (
    "static_bytes",
    "peak_allocated_bytes",
    "peak_reserved_bytes",
    "device_bytes",
    "step_time_s",
    "tokens_per_s",
)
"""Metrics that are shown planned beside measured."""

NAMED_DIFFERENCES = 12
"""Differences of pairs that are spelt out below the comparison."""


def record_ranges(results: Iterable[Result | None], numbers: Numbers) -> RecordRanges | None:
    """Return the numbers of the records behind some results; None where they are unknown."""
    records = (record for result in results if result for record in result.records)
    ranges: list[list[int]] = []
    for number in sorted({numbers[id(record)] for record in records if id(record) in numbers}):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    if not ranges:
        return None
    named = tuple((first, last) for first, last in ranges[:NAMED_RANGES])
    return RecordRanges(named, sum(last - first + 1 for first, last in ranges[NAMED_RANGES:]))


def comparison_table(pairs: Sequence[MethodPair], numbers: Numbers | None = None) -> Table | None:
    """Return one row for each pair: what both need, what is saved, how fast, and what else differs.

    With `numbers` a last column names the records behind each row, here as in the other tables.
    """
    draft = Draft()
    ours = [pair.candidate for pair in pairs]
    add_settings(draft, ours)
    # The answer stands first: a phone shows three or four columns.
    peaks = [pair.peak for pair in pairs]
    draft.add("Candidate", [method_text(pair.candidate) for pair in pairs])
    draft.add("Saved, share", [rounded(peak.percent) for peak in peaks], "%")
    _add_basis(draft, ours)
    draft.add("Peak, candidate", [peak.candidate for peak in peaks], "bytes")
    draft.add("Peak, baseline", [peak.baseline for peak in peaks], "bytes")
    baselines = [method_text(pair.baseline) for pair in pairs]
    same_baseline = len(set(baselines)) == 1
    if not same_baseline:
        draft.add("Baseline", baselines)
    draft.add("Saved", [peak.bytes for peak in peaks], "bytes")
    draft.add("Speed", [pair.throughput_ratio for pair in pairs], "x")
    timed = [None if pair.throughput_ratio is None else pair for pair in pairs]
    draft.add("Speed in doubt", [_doubts(pair.speed_doubts) if pair else None for pair in timed])
    _add_other_savings(draft, pairs)
    _add_trainable(draft, [pair.trainable_params for pair in pairs])
    differing = [", ".join(difference_names(pair.differs)) or "nothing" for pair in pairs]
    if len(set(differing)) > 1:
        draft.add("Also differs", differing)
    _add_records(draft, [(pair.baseline, pair.candidate) for pair in pairs], numbers)
    return draft.table(
        "Peak is the largest memory allocated within a step. Saved is baseline less candidate: if it is "
        "negative, the candidate needs more."
        + (f" The baseline is {baselines[0]} throughout." if same_baseline else "")
        + _same_basis(ours),
        *([_speed_note(pairs)] if draft.has("Speed") else []),
        *_differences_in_full(pairs),
    )


def _add_basis(draft: Draft, results: Sequence[Result]) -> None:
    """Say whether each row is planned or measured; a device that all share stands in the title."""
    devices = {result.device for result in results}
    device = next(iter(devices), None) if len(devices) == 1 else None
    texts = [kind_text(result.kind, device) if device else basis(result) for result in results]
    if device is None or len(set(texts)) > 1:
        draft.add(f"Basis, {device_text(device)}" if device else "Basis", texts)


def _same_basis(results: Sequence[Result]) -> str:
    """Return what the column of the basis would repeat in each row."""
    bases = {basis(result) for result in results}
    return f" All are {bases.pop()}." if len(bases) == 1 else ""


def _speed_note(pairs: Sequence[MethodPair]) -> str:
    planned = any(pair.speed_card for pair in pairs)
    on = "; planned on the first named card that holds both" if planned else ""
    return f"Speed is the candidate's tokens per second over the baseline's{on}."


def _add_records(draft: Draft, rows: Iterable[Iterable[Result | None]], numbers: Numbers | None) -> None:
    draft.add("Records", [record_ranges(results, numbers or {}) for results in rows])


def _differences_in_full(pairs: Sequence[MethodPair]) -> list[str]:
    """Spell each difference out once, below the table."""
    found = list(dict.fromkeys(difference_text(each) for pair in pairs for each in pair.differs))
    if not found:
        return []
    rest = len(found) - NAMED_DIFFERENCES
    more = f"; and {rest} more" if rest > 0 else ""
    return [f"Also differs, baseline against candidate: {'; '.join(found[:NAMED_DIFFERENCES])}{more}."]


def _add_other_savings(draft: Draft, pairs: Sequence[MethodPair]) -> None:
    savings = [pair.savings for pair in pairs]
    for name in MEMORY_METRICS:
        if name != "peak_allocated_bytes":
            shares = [rounded(saving[name].percent) if name in saving else None for saving in savings]
            draft.add(f"{METRICS[name].title}, saved", shares, "%")


def _add_trainable(draft: Draft, trainable: Sequence[tuple[float | None, float | None]]) -> None:
    """Add one column where baseline and candidate train the same number, two where they do not."""
    if all(baseline == candidate for baseline, candidate in trainable):
        draft.add("Trainable", [candidate for _, candidate in trainable], "count")
        return
    draft.add("Trainable, baseline", [baseline for baseline, _ in trainable], "count")
    draft.add("Trainable, candidate", [candidate for _, candidate in trainable], "count")


def add_settings(draft: Draft, results: Sequence[Result]) -> None:
    """Add the model where there are several, and each setting but the precision in which results differ."""
    if len({result.point.model for result in results}) > 1:
        draft.add("Model", [short_model(result.point.model) for result in results])
    for name in varying_settings(results):
        values = [result.settings.get(name) for result in results]
        counts = all(isinstance(value, int) and not isinstance(value, bool) for value in values)
        draft.add(SETTINGS[name].title, [_setting(value) for value in values], "count" if counts else "")


def _setting(value: Any) -> Value:
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else plain_text(value)


def method_text(result: Result) -> str:
    """Return the method of a result with its precision as a cell: 'QLoRA nf4'."""
    names = {"lora": "LoRA", "qlora": "QLoRA", "full": "full"}
    return f"{names[result.point.method]} {result.point.precision}"


def rounded(value: float | None) -> float | None:
    """Three significant digits: enough for a share, and never 0 for a difference that is not."""
    return None if value is None else float(f"{value:.3g}")


def points_table(results: Sequence[Result], numbers: Numbers | None = None) -> Table | None:
    """Return one row for each point and machine, plan beside measurement with the error in percent."""
    rows = _plan_beside_measurement(results)
    shown = [measured or plan for plan, measured in rows]
    points = [result for result in shown if result is not None]
    draft = Draft()
    add_settings(draft, points)
    draft.add("Precision", [result.point.precision for result in points])
    devices = [device_text(result.device) for result in points]
    if len(set(devices)) > 1:
        draft.add("Device", devices)
    if len({result.machine for result in points if result.machine}) > 1:
        draft.add("Machine", [_machine(result) for result in points])
    _add_outcomes(draft, rows)
    draft.add("Processes", [len(measured.completed) if measured else None for _, measured in rows])
    draft.add("Trainable", [_trainable(plan, measured) for plan, measured in rows], "count")
    draft.add("Not valid", [_not_valid(measured) for _, measured in rows])
    timed = [m if m is not None and m.value("tokens_per_s") is not None else None for _, m in rows]
    draft.add("Speed in doubt", [_doubts(result.speed_doubts) if result else None for result in timed])
    for name in POINT_METRICS:
        _add_metric(draft, name, rows)
    latest = [measured.latest if measured else None for _, measured in rows]
    draft.add("Loss before", [record.loss_before if record else None for record in latest], "nats/token")
    draft.add("Loss after", [record.loss_after if record else None for record in latest], "nats/token")
    _add_records(draft, rows, numbers)
    medians = "Measured values are medians over processes. Error is plan less measurement, in percent of it."
    on_null = [basis(result) for result in points if result.device == "null"]
    return draft.table(
        *([medians] if draft.has("Processes") else []),
        *([f"{listed(list(dict.fromkeys(on_null)))}: {NULL_NOTE}"] if on_null else []),
    )


def _measured(rows: Sequence[tuple[Result | None, Result | None]]) -> str:
    return measured_text(measured for _, measured in rows if measured)


def _doubts(doubts: Sequence[str]) -> str | None:
    return "; ".join(doubts) or None


def _not_valid(measured: Result | None) -> str | None:
    """Return the metrics that some process has no valid number for."""
    void = [name for name in POINT_METRICS if measured and measured.is_void(name)]
    return ", ".join(METRICS[name].title for name in void) or None


def _add_outcomes(draft: Draft, rows: Sequence[tuple[Result | None, Result | None]]) -> None:
    """Add how plan and measurement ended, unless each row has both and all ended ok."""
    planned = [plan.outcome if plan else None for plan, _ in rows]
    measured = [result.outcome if result else None for _, result in rows]
    if {*planned, *measured} != {"ok"} and (any(measured) or set(planned) != {"ok"}):
        draft.add("Planned", planned)
        draft.add(_measured(rows).capitalize(), measured)


def _machine(result: Result) -> str | None:
    facts = dict(result.machine)
    return f"{facts['device_name']}, torch {facts.get('torch', NOT_AVAILABLE)}" if facts else None


def _trainable(plan: Result | None, measured: Result | None) -> float | None:
    counts = [result.value("trainable_params") for result in (measured, plan) if result]
    return next((count for count in counts if count is not None), None)


def _plan_beside_measurement(results: Sequence[Result]) -> list[tuple[Result | None, Result | None]]:
    """Pair each plan with what was measured of it, on each machine; or either alone."""
    met: dict[Result, list[Result | None]] = {}
    for prediction in predictions(results):
        met.setdefault(prediction.plan, []).append(prediction.measured)
    planned = {measured for members in met.values() for measured in members}
    rows: list[tuple[Result | None, Result | None]] = []
    for result in results:
        if result.kind == "plan":
            rows += [(result, measured) for measured in met.get(result, [None])]
        elif result not in planned:
            rows.append((None, result))
    return rows


def _add_metric(draft: Draft, name: str, rows: Sequence[tuple[Result | None, Result | None]]) -> None:
    title, unit = METRICS[name].title, METRICS[name].unit
    draft.add(f"{title}, planned", [plan.value(name) if plan else None for plan, _ in rows], unit)
    draft.add(
        f"{title}, {_measured(rows)}",
        [measured.value(name) if measured else None for _, measured in rows],
        unit,
    )
    draft.add(f"{title}, error", [_error_percent(plan, measured, name) for plan, measured in rows], "%")


def _error_percent(plan: Result | None, measured: Result | None, name: str) -> float | None:
    if plan is None or measured is None:
        return None
    return rounded(Prediction(plan=plan, measured=measured).error_percent(name))
