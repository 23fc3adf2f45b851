"""Why a 4-bit base is not a quarter of a 16-bit one, and what training adds on top, byte by byte."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qbench.records.metrics import BREAKDOWN, OF_SEVERAL_GPUS
from qbench.records.parts import BaseWeights
from qbench.records.record import Record
from qbench.scenario.schema import QUANTIZED_PRECISIONS

NAMED_MODULES = 3
"""Unquantized modules that a note names, largest first."""

_SIXTEEN = 16
_BASE_CATEGORIES = ("weights", "quant_state")
_LABELS = {"logits_loss": "logits and loss", "optimizer": "optimizer state"}


@dataclass(frozen=True, slots=True, kw_only=True)
class WaterfallRow:
    """One step of the way; a total is where the steps before it lead."""

    label: str
    bytes: int
    """A total's height, or what a step adds (negative: takes away)."""
    kind: Literal["total", "step"]
    note: str = ""
    """Why, where the label does not say it."""


def why_not_a_quarter(record: Record) -> tuple[WaterfallRow, ...]:
    """Return the rows from the 16-bit base weights to the quantized base at rest and on to the peak.

    Every total is the sum of the rows since the first one, to the byte. Empty when the base is not
    quantized or the record does not say what its weights take (`base_weights`).
    """
    base = record.base_weights
    if not base or record.point.precision not in QUANTIZED_PRECISIONS:
        return ()
    rows = _rows_at_rest(record, base)
    at_rest = base["quantized_bytes"] + base["quant_state_bytes"] + base["unquantized_bytes"]
    rows.append(WaterfallRow(label="quantized base at rest", bytes=at_rest, kind="total"))
    rows += _rows_to_peak(record, at_rest)
    return tuple(row for row in rows if row.bytes or row.kind == "total")


def _rows_at_rest(record: Record, base: BaseWeights) -> list[WaterfallRow]:
    bits = 8 if record.point.precision == "int8" else 4
    sixteen = base["sixteen_bit_bytes"]
    ideal = sixteen * bits // _SIXTEEN
    # What the unquantized parameters would take in 16 bit; the quantized ones take 2 bytes each there.
    left_out = sixteen - 2 * base["quantized_params"]
    rounding = base["quantized_bytes"] - base["quantized_params"] * bits // 8
    upcast = base["unquantized_bytes"] - left_out
    stays = base["quantized_bytes"] + left_out - rounding - ideal
    share = "a half" if bits == 8 else "a quarter"
    return [
        WaterfallRow(label="base weights in 16 bit", bytes=sixteen, kind="total"),
        WaterfallRow(label=f"all of it in {bits} bit", bytes=ideal - sixteen, kind="step"),
        WaterfallRow(label=share, bytes=ideal, kind="total"),
        WaterfallRow(label="stays in 16 bit", bytes=stays, kind="step", note=_unquantized_note(record)),
        WaterfallRow(label="packing", bytes=rounding, kind="step", note="padding of packed weights"),
        WaterfallRow(
            label="quantization state",
            bytes=base["quant_state_bytes"],
            kind="step",
            note="scales (absmax) of the blocks of weights, and code books",
        ),
        _grown_row(upcast, left_out),
    ]


def _grown_row(grown: int, left_out: int) -> WaterfallRow:
    """What the unquantized part takes above 16 bit: an upcast doubles it, the model's buffers hardly show."""
    if grown * 100 < left_out:
        return WaterfallRow(label="buffers", bytes=grown, kind="step")
    note = "unquantized weights that the recipe casts to fp32"
    return WaterfallRow(label="upcast to 32 bit", bytes=grown, kind="step", note=note)


def _unquantized_note(record: Record) -> str:
    skipped = sorted(record.skipped, key=lambda item: -item["params"])
    names = [f"{item['module']} ({item['reason']})" for item in skipped[:NAMED_MODULES]]
    return "; ".join(names) or "embeddings, output head, norms"


def _rows_to_peak(record: Record, at_rest: int) -> list[WaterfallRow]:
    peak, breakdown = record.peak_allocated_bytes, record.breakdown_bytes
    if peak is None or not breakdown:
        return []
    rows = [
        WaterfallRow(label=_LABELS.get(name, name), bytes=breakdown.get(name, 0), kind="step")
        for name in BREAKDOWN
        if name not in _BASE_CATEGORIES and (name in breakdown or name not in OF_SEVERAL_GPUS)
    ]
    rest = peak - at_rest - sum(row.bytes for row in rows)
    rows.append(WaterfallRow(label="rounding and buffers", bytes=rest, kind="step", note="512-byte blocks"))
    rows.append(WaterfallRow(label="peak of a step", bytes=peak, kind="total"))
    return rows
