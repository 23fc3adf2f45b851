from __future__ import annotations

import pytest

from qbench.report.waterfall import why_not_a_quarter
from tests.comparison.hand_made import make_record

# 1000 weights: 800 in linear layers, 200 in embeddings and norms that the recipe casts to fp32.
BASE = {
    "sixteen_bit_bytes": 2000,
    "quantized_bytes": 400,  # 800 x 4 bit
    "quant_state_bytes": 50,
    "unquantized_bytes": 800,  # 200 x 4 B
    "quantized_params": 800,
    "unquantized_params": 200,
}
BREAKDOWN = {
    "weights": 1200,
    "quant_state": 50,
    "adapters": 30,
    "gradients": 30,
    "optimizer": 60,
    "activations": 100,
}


def plan(base=BASE, precision="nf4", metrics=None, **detail):
    return make_record(precision=precision, metrics=metrics or {}, detail={"base_weights": base, **detail})


def rows(record):
    return {row.label: row.bytes for row in why_not_a_quarter(record)}


def test_every_byte_between_sixteen_bit_and_the_base_at_rest():
    assert rows(plan()) == {
        "base weights in 16 bit": 2000,
        "all of it in 4 bit": -1500,
        "a quarter": 500,
        "stays in 16 bit": 300,  # 200 weights at 2 B instead of half a byte
        "quantization state": 50,
        "upcast to 32 bit": 400,  # 200 weights, 2 B more each
        "quantized base at rest": 1250,  # 400 + 50 + 800
    }


def test_on_to_the_peak():
    metrics = {"peak_allocated_bytes": 1480, "breakdown_bytes": BREAKDOWN}
    found = rows(plan(metrics=metrics))
    assert found["activations"] == 100
    assert found["rounding and buffers"] == 1480 - 1250 - 220
    assert found["peak of a step"] == 1480


@pytest.mark.parametrize("precision", ["nf4", "int8"])
@pytest.mark.parametrize("peak", [None, 1470, 1481])
@pytest.mark.parametrize(
    "change", [{}, {"unquantized_bytes": 400}, {"quantized_bytes": 416}, {"sixteen_bit_bytes": 2003}]
)
def test_every_total_is_the_sum_of_what_precedes_it(precision, peak, change):
    metrics = {"peak_allocated_bytes": peak, "breakdown_bytes": BREAKDOWN} if peak else {}
    height = 0
    for index, row in enumerate(why_not_a_quarter(plan(BASE | change, precision, metrics))):
        if row.kind == "step" or index == 0:
            height += row.bytes
        else:
            assert row.bytes == height, row.label


def test_int8_is_held_against_a_half():
    base = BASE | {"quantized_bytes": 800}
    found = rows(plan(base, "int8"))
    assert found["a half"] == 1000
    assert "packing" not in found


def test_buffers_are_no_upcast():
    assert set(rows(plan(BASE | {"unquantized_bytes": 400}))).isdisjoint({"upcast to 32 bit", "buffers"})
    found = rows(plan(BASE | {"unquantized_bytes": 402}))
    assert found["buffers"] == 2
    assert "upcast to 32 bit" not in found


def test_the_note_says_what_stays_and_why():
    skipped = [
        {"module": "norm", "reason": "not a linear layer", "params": 1, "share": 0.001},
        {"module": "embed_tokens", "reason": "a table", "params": 199, "share": 0.199},
    ]
    notes = {row.label: row.note for row in why_not_a_quarter(plan(skipped=skipped))}
    assert notes["stays in 16 bit"] == "embed_tokens (a table); norm (not a linear layer)"


def test_nothing_without_quantization_or_facts():
    assert why_not_a_quarter(plan(precision="bf16")) == ()
    assert why_not_a_quarter(make_record(precision="nf4")) == ()
