"""Tables of what the numbers stand on: environment, failures, caveats, weights left out, definitions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, get_args

from qbench.comparison.methods import NearPair
from qbench.comparison.results import Result, caveats
from qbench.records.facts import environment_facts
from qbench.records.metrics import METRICS
from qbench.records.parts import OomFacts
from qbench.records.record import Kind
from qbench.report.table import Draft, Table, plain_table
from qbench.report.tables import method_text, rounded
from qbench.units import plain_text
from qbench.words.basis import basis
from qbench.words.phrases import difference_text
from qbench.words.settings import short_model

NAMED_VALUES = 4
"""Values of one environment fact that are written out."""

VERDICTS = {"invalid": "not valid", "warn": "note"}
VOID_NOTE = "A speed that is not valid is left out of every median, ratio and headline; the CSV keeps it."

RECONCILED = {
    "Card, grown by": "device",
    "Context": "context",
    "Reserved": "reserved",
    "Non-torch": "non_torch",
    "Unexplained": "unexplained",
}
SAMPLED = {
    "In use, sampled max": ("memory_used_bytes", "max", "bytes"),
    "Power, mean": ("power_w", "mean", "W"),
    "Temperature, max": ("temperature_c", "max", "C"),
    "SM clock, mean": ("sm_clock_mhz", "mean", "MHz"),
}
CARD_NOTE = (
    "Growth is context + reserved + non-torch + unexplained, read after the timed steps. "
    "Sampled values are of loading, warm-up and memory pass: a peak between two samples is missed."
)


def near_table(near: Sequence[NearPair]) -> Table | None:
    """Return the candidates without an exact partner, the nearest result, and all that differs."""
    draft = Draft()
    draft.add("Model", [short_model(pair.candidate.point.model) for pair in near])
    draft.add("Candidate", [method_text(pair.candidate) for pair in near])
    draft.add("Nearest", [method_text(pair.baseline) for pair in near])
    draft.add("Basis", [basis(pair.candidate) for pair in near])
    draft.add("Differs besides precision", ["; ".join(map(difference_text, pair.differs)) for pair in near])
    return draft.table("More than precision differs here, so these are not compared.")


def skipped_table(results: Sequence[Result]) -> Table | None:
    """Return the weights that quantization or LoRA did not reach, once for each model."""
    found: dict[tuple[Any, ...], dict[str, None]] = {}
    for result in results:
        for item in result.latest.skipped:
            facts = (item["module"], item["reason"], item["params"], item.get("share"))
            found.setdefault((result.point.model, *facts), {})[result.point.precision] = None
    draft = Draft()
    draft.add("Model", [short_model(key[0]) for key in found])
    draft.add("Precision", [", ".join(precisions) for precisions in found.values()])
    draft.add("Weights", [key[1] for key in found])
    draft.add("Why", [key[2] for key in found])
    draft.add("Parameters", [key[3] for key in found], "count")
    draft.add("Share of the base", [_share_percent(key[4]) for key in found], "%")
    return draft.table()


def _share_percent(share: float | None) -> float | None:
    return None if share is None else rounded(100 * share)


def caveats_table(results: Sequence[Result]) -> Table | None:
    """Return each caveat once, with the number of points that carry it."""
    counts = caveats(results)
    draft = Draft()
    draft.add("Caveat", counts)
    draft.add("Points", list(counts.values()))
    return draft.table()


def failures_table(results: Sequence[Result]) -> Table | None:
    """Return each record that did not end ok, with its error; out of memory is among them."""
    failed = [(result, record) for result in results for record in result.records if record.outcome != "ok"]
    draft = Draft()
    draft.add("Point", [result.point.label for result, _ in failed])
    draft.add("Basis", [basis(result) for result, _ in failed])
    draft.add("Ended as", [record.outcome for _, record in failed])
    out_of_memory = [record.oom or OomFacts() for _, record in failed]
    draft.add("In phase", [oom.get("phase") for oom in out_of_memory])
    draft.add("Asked for", [oom.get("requested_bytes") for oom in out_of_memory], "bytes")
    draft.add("Free", [oom.get("free_bytes") for oom in out_of_memory], "bytes")
    draft.add("Error", [record.error for _, record in failed])
    draft.add("Last lines", [record.stderr_tail for _, record in failed])
    return draft.table()


def findings_table(results: Sequence[Result]) -> Table | None:
    """Return each finding against measurements once: meaning, number of processes, values."""
    found: dict[tuple[str, str, str], list[Any]] = {}
    for result in results:
        for record in result.records:
            for finding in record.validity:
                if finding["verdict"] != "ok":
                    key = (finding["name"], finding["verdict"], finding["why"])
                    found.setdefault(key, []).append(finding["value"])
    keys = sorted(found, key=lambda key: key[1] != "invalid")
    draft = Draft()
    draft.add("Finding", [name.replace("_", " ") for name, _, _ in keys])
    draft.add("Verdict", [VERDICTS[verdict] for _, verdict, _ in keys])
    draft.add("Processes", [len(found[key]) for key in keys])
    draft.add("Values", [_range(found[key]) for key in keys])
    draft.add("What it means", [why for _, _, why in keys])
    return draft.table(*([VOID_NOTE] if any(verdict == "invalid" for _, verdict, _ in keys) else []))


def _range(values: Iterable[Any]) -> str | None:
    """Return the span of values that are numbers; flags and unknown ones have none."""
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if not numbers:
        return None
    low, high = f"{min(numbers):.3g}", f"{max(numbers):.3g}"
    return low if low == high else f"{low} to {high}"


def card_table(results: Sequence[Result]) -> Table | None:
    """Return for each point measured on a GPU where the card's memory went, and how the card fared."""
    shown = [result for result in results if result.latest.reconciliation_bytes]
    draft = Draft()
    draft.add("Point", [result.point.label for result in shown])
    for title, key in RECONCILED.items():
        sizes = [result.latest.reconciliation_bytes.get(f"{key}_bytes") for result in shown]
        draft.add(title, sizes, "bytes")
    for title, (key, which, unit) in SAMPLED.items():
        readings = [result.latest.readings.get(key) for result in shown]
        draft.add(title, [reading[which] if reading else None for reading in readings], unit)
    draft.add("Energy a step", [result.latest.energy_j_per_step for result in shown], "J")
    return draft.table(*([CARD_NOTE] if shown else []))


def environment_table(results: Sequence[Result]) -> Table | None:
    """Return each fact of the environment, for plans and for measurements; all values where they differ."""
    values: dict[str, dict[str, dict[str, None]]] = {}
    last: dict[str, Any] = {}
    for result in results:
        for record in result.records:
            if last.get(record.kind) == record.environment:
                continue  # Records of one run hardly differ here, and there may be thousands.
            last[record.kind] = record.environment
            for name, value in environment_facts(record.environment).items():
                by_kind = values.setdefault(name, {kind: {} for kind in get_args(Kind)})
                by_kind[record.kind][plain_text(value)] = None
    draft = Draft()
    draft.add("Fact", values)
    draft.add("Plans", [_listed(by_kind["plan"]) for by_kind in values.values()])
    draft.add("Measurements", [_listed(by_kind["measurement"]) for by_kind in values.values()])
    draft.add("Dry runs", [_listed(by_kind["dryrun"]) for by_kind in values.values()])
    return draft.table()


def _listed(values: Iterable[str]) -> str | None:
    listed = list(values)
    rest = len(listed) - NAMED_VALUES
    text = "; ".join(listed[:NAMED_VALUES])
    return (f"{text}; and {rest} more" if rest > 0 else text) or None


def metrics_table() -> Table:
    """Return what each metric means, from the registry."""
    rows = ((row.name, row.unit, row.better, row.description) for row in METRICS.values())
    return plain_table(("Metric", "Unit", "Better", "What it is"), rows)
