"""The section on quality, from hand-made records."""

from __future__ import annotations

from qbench.comparison.results import gather
from qbench.records.record import Record
from qbench.report.quality import error_by_layer, losses_table, worst_table
from tests.comparison.hand_made import make_record
from tests.report.rows import texts
from tests.report.sample_run import render_html

BY_MODULE = {
    "model.layers.0.mlp.up_proj": 0.08,
    "model.layers.0.self_attn.q_proj": 0.10,
    "model.layers.1.self_attn.q_proj": 0.12,
}


def measured_quality() -> list[Record]:
    """Return a measurement of LoRA and one of QLoRA with real weights on a text."""
    losses = {"bf16": (4.22, 4.15), "nf4": (4.41, 4.29)}
    records = []
    for precision, (before, after) in losses.items():
        quality = {"loss_before": before, "loss_after": after, "steps": 7, "tokens": 1280, "data": "a.txt"}
        if precision == "nf4":
            quality |= {"weight_error": 0.1, "by_module": BY_MODULE}
        detail = {"repeat": 0, "quality": quality}
        records.append(make_record(kind="measurement", precision=precision, r=8, metrics={}, detail=detail))
    return records


def test_losses_stand_side_by_side():
    table = losses_table(gather(measured_quality()))
    assert table is not None
    bf16, nf4 = texts(table)
    assert (bf16["Loss before"], bf16["Loss after"]) == ("4.220 nats/token", "4.150 nats/token")
    assert (nf4["Method"], nf4["Loss after"], nf4["Error of weights"]) == (
        "QLoRA",
        "4.290 nats/token",
        "10.0 %",
    )
    assert bf16["Error of weights"] == "n/a"


def test_the_worst_modules_come_first():
    table = worst_table(gather(measured_quality()))
    assert table is not None
    first, *_ = texts(table)
    assert (first["Module"], first["Error"]) == ("model.layers.1.self_attn.q_proj", "12.0 %")


def test_without_quality_there_is_no_section():
    results = gather([make_record(kind="measurement")])
    assert losses_table(results) is None
    assert worst_table(results) is None
    assert error_by_layer(results) is None
    assert "<h2>Quality</h2>" not in render_html([make_record()], "t")
    assert "<h2>Quality</h2>" in render_html(measured_quality(), "t")
