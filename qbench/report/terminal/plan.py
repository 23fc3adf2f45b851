"""Plans as lines of plain text for a terminal: one point at length, several as a table."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from qbench.catalog.gpus import gpus
from qbench.comparison.results import Result, caveats, gather, varying_settings
from qbench.records.metrics import BREAKDOWN, METRICS
from qbench.records.parts import TimeParts
from qbench.records.record import Record
from qbench.report.terminal.table import GAP, Cells, aligned, fitted, line_width, with_text, wrapped
from qbench.scenario.settings import SETTINGS
from qbench.units import format_bytes, format_count, format_seconds, format_value, plain_text
from qbench.words.basis import basis
from qbench.words.fit_verdict import verdict_line
from qbench.words.phrases import category_name
from qbench.words.settings import describe_training, other_settings, short_model


def plan_lines(records: Sequence[Record]) -> list[str]:
    """Return what plans say: one point at length, several as a table with what they have in common above."""
    results = gather(records)
    return _one(results[0]) if len(results) == 1 else _several(results)


def _one(result: Result) -> list[str]:
    inner = line_width() - len(GAP)
    blocks = {
        "At the peak:": aligned(_breakdown(result), "<>>"),
        "Planned time of a step:": aligned(_time_parts(result), "<>>"),
        "The base model:": aligned(_base_weights(result), "<>"),
        "GPUs:": with_text(_cards(result), "<>", inner),
        "Not reached by quantization or LoRA:": with_text(_skipped(result), ">", inner),
        "Caveats:": _caveats([result]),
    }
    under_headings = [[heading, *_indented(lines)] for heading, lines in blocks.items() if lines]
    figures = with_text(_figures(result), "<>", line_width())
    return _joined([wrapped(_title([result], ())), figures, *under_headings])


def _several(results: Sequence[Result]) -> list[str]:
    from qbench.comparison.methods import pair_results
    from qbench.report.terminal.gpu_columns import gpu_tables
    from qbench.words.frontier import frontier_sentences
    from qbench.words.headline import headline  # One plan needs none of these.

    varying = varying_settings(results)
    several_models = len({result.point.model for result in results}) > 1
    hidden = ("precision", *varying, *(["model"] if several_models else []))
    sentences = [*headline(pair_results(results)), *frontier_sentences(results)]
    said = [line for sentence in sentences for line in wrapped(sentence)]
    caveats = _caveats(results)
    blocks = [
        wrapped(_title(results, hidden)),
        fitted(_columns(results, varying, several_models), len(results)),
        *gpu_tables(results, _lead_columns(results, varying, several_models)),
        said,
        ["Caveats:", *_indented(caveats)] if caveats else [],
    ]
    return _joined(block for block in blocks if block)


def _joined(blocks: Iterable[list[str]]) -> list[str]:
    """Return the lines of all blocks with an empty line between two of them."""
    lines: list[str] = []
    for block in blocks:
        lines += ["", *block] if lines else block
    return lines


def _indented(lines: Iterable[str]) -> list[str]:
    """Return lines under a heading; one that is too long continues with more indentation."""
    return [
        part
        for line in lines
        for part in textwrap.wrap(
            line,
            line_width(),
            initial_indent=GAP,
            subsequent_indent=3 * GAP,
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=False,
        )
    ]


def _title(results: Sequence[Result], hidden: Sequence[str]) -> str:
    """Return the settings that all results share: those that matter most, and others that are no defaults."""
    first = results[0]
    capability = first.latest.compute_capability
    target = f" with compute capability {capability[0]}.{capability[1]}" if capability else ""
    main = describe_training(first.point, hidden)
    if "model" in hidden:  # Else it begins with a name, which keeps its spelling.
        main = main[:1].upper() + main[1:]
    quantized = next((result for result in results if result.point.method == "qlora"), first)
    others = other_settings(quantized.point, ("recipe", *hidden))
    if len({result.point.method for result in results}) > 1:
        others = [f"{text} (QLoRA)" if text.startswith("adapter_dtype") else text for text in others]
    return "; ".join(filter(None, [main, ", ".join(others), basis(first) + target]))


_FIGURES = (
    "peak_allocated_bytes",
    "peak_reserved_bytes",
    "device_bytes",
    "static_bytes",
    "step_time_s",
    "tokens_per_s",
    "cost_usd_per_mtok",
)
"""Metrics of one plan, in the order in which they are shown."""


def _figures(result: Result) -> list[Cells]:
    """Return the figures of one plan: name, value, remark."""
    at = result.records[-1].peak_at or {}
    where = f"in {at['phase']}: {at['op']} of {at['module'] or 'the step'}" if at.get("op") else ""
    context = result.latest.context_bytes
    outside = "a CUDA context" if result.point.num_gpus == 1 else "a CUDA context and NCCL"
    remarks = {
        "peak_allocated_bytes": where,
        "device_bytes": f"with {outside} of up to {format_bytes(context[-1])}" if context else "",
        "static_bytes": "before the first step",
        **_time_remarks(result),
    }
    rows: list[Cells] = []
    for metric in map(METRICS.__getitem__, _FIGURES):
        value = result.value(metric.name)
        if value is not None:
            rows.append((metric.title, format_value(value, metric.unit), remarks.get(metric.name, "")))
    reserved, num_gpus = result.value("peak_reserved_bytes"), result.point.num_gpus
    if num_gpus > 1 and reserved is not None:
        remark = "reserved, at most; the figures above are of the GPU that takes most"
        rows.insert(3, (f"On {num_gpus} GPUs", format_bytes(round(num_gpus * reserved)), remark))
    trainable, total = result.value("trainable_params"), result.value("total_params")
    if trainable is not None and total:
        share = f"of {format_count(total)} parameters ({_percent(trainable / total)})"
        rows.append((METRICS["trainable_params"].title, format_count(trainable), share))
    return rows


def _breakdown(result: Result) -> list[Cells]:
    total = sum(result.breakdown.values())
    return [
        (
            category_name(name),
            format_bytes(result.breakdown[name]),
            _percent(result.breakdown[name] / total),
        )
        for name in BREAKDOWN
        if result.breakdown.get(name)
    ]


def _planned_time(result: Result) -> TimeParts | None:
    """Return where planned time goes on the device that the metrics are of; None where it has none."""
    card = result.latest.metrics_fit
    if card is not None:
        return card.time if card.fits else None
    return None if result.fits else result.latest.time


def _time_remarks(result: Result) -> dict[str, str]:
    time, card = _planned_time(result), result.latest.metrics_fit
    if not time:
        return {}
    device = "this CPU" if card is None else card.gpu
    mfu = time.get("mfu")
    shared = "" if mfu is None else f"{_percent(mfu)} of the peak arithmetic (MFU)"
    ends = [format_seconds(seconds) for seconds in time.get("range_s", ())]
    between = f"{' to '.join(ends)}; " if ends else ""
    return {
        "step_time_s": f"{between}planned for {device}, bound by {time['bound']}; {time['rates']}",
        "tokens_per_s": shared,
    }


def _time_parts(result: Result) -> list[Cells]:
    """Return where the time of a step goes."""
    time = _planned_time(result)
    parts = time["parts_s"] if time else {}
    total = sum(parts.values())
    return [
        (name, format_seconds(seconds), _percent(seconds / total))
        for name, seconds in parts.items()
        if seconds
    ]


def _base_weights(result: Result) -> list[Cells]:
    """Return where the bytes of a quantized base model are; nothing for any other."""
    facts = result.latest.base_weights
    if not facts or not facts["quantized_params"]:
        return []
    together = facts["quantized_bytes"] + facts["quant_state_bytes"] + facts["unquantized_bytes"]
    in_16_bit = format_bytes(facts["sixteen_bit_bytes"])
    return [
        ("quantized", format_bytes(facts["quantized_bytes"]), _params(facts["quantized_params"])),
        ("quantization state", format_bytes(facts["quant_state_bytes"]), ""),
        ("not quantized", format_bytes(facts["unquantized_bytes"]), _params(facts["unquantized_params"])),
        ("together", format_bytes(together), f"where 16 bit would take {in_16_bit}"),
    ]


def _params(count: int) -> str:
    return f"for {format_count(count)} parameters"


def _cards(result: Result) -> list[Cells]:
    """Return the cards that were named, or the smallest of the catalog that holds the plan."""
    asked: list[Cells] = [
        (fit.gpu, format_bytes(fit.memory_bytes), verdict_line(fit, result.value("peak_allocated_bytes")))
        for fit in result.fits
    ]
    needed = result.value("device_bytes")
    if asked or needed is None:
        return asked
    holding = [gpu for gpu in gpus() if gpu.memory_bytes >= needed and gpu.compute_capability is not None]
    if not holding:
        return [("none", "", "no single NVIDIA GPU in the catalog holds it")]
    smallest = min(holding, key=lambda gpu: gpu.memory_bytes)
    left = format_bytes(smallest.memory_bytes - needed)
    text = f"the smallest in the catalog that holds it, {left} left; name others with --gpu"
    return [(smallest.name, format_bytes(smallest.memory_bytes), text)]


def _skipped(result: Result) -> list[Cells]:
    return [
        (_percent(share), f"{item['module']}: {item['reason']}")
        for item in result.latest.skipped
        if (share := item.get("share")) is not None
    ]


def _caveats(results: Sequence[Result]) -> list[str]:
    counts = caveats(results)
    return [f"{text} ({counts[text]} of {len(results)})" if len(results) > 1 else text for text in counts]


def _columns(results: Sequence[Result], varying: Sequence[str], several_models: bool) -> dict[str, list[str]]:
    """Return the columns of a table of several plans, by title."""
    from qbench.report.terminal.gpu_columns import gpu_columns

    columns = _lead_columns(results, varying, several_models)
    for title, name in (
        ("Peak", "peak_allocated_bytes"),
        ("Reserved", "peak_reserved_bytes"),
        ("Device", "device_bytes"),
        ("Step", "step_time_s"),
        ("At rest", "static_bytes"),
        ("Trainable", "trainable_params"),
    ):
        unit = METRICS[name].unit
        columns[title] = [_cell(result, name, unit) for result in results]
    return columns | gpu_columns(results)


def _lead_columns(
    results: Sequence[Result], varying: Sequence[str], several_models: bool
) -> dict[str, list[str]]:
    """Return the columns that tell the plans apart."""
    columns: dict[str, list[str]] = {}
    if several_models:
        columns["model"] = [short_model(result.point.model) for result in results]
    columns["precision"] = [result.point.precision for result in results]
    for name in varying:
        values = [plain_text(result.settings[name]) for result in results]
        columns[SETTINGS[name].short] = values
    return columns


def _cell(result: Result, name: str, unit: str) -> str:
    value = result.value(name)
    return result.outcome if value is None and name == "peak_allocated_bytes" else format_value(value, unit)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %" if share < 0.1 else f"{100 * share:.1f} %"
