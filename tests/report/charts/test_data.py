"""What charts draw, read back from the CSV beside the report and held against the records."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from typing import Any

import pytest

from qbench.records.metrics import BREAKDOWN
from qbench.report.charts.all import BUILDERS, charts
from qbench.report.content import gather_content
from qbench.report.export import charts_csv_text, csv_text
from qbench.report.waterfall import why_not_a_quarter
from qbench.words.phrases import category_name
from tests.report.sample_run import measurement, plan, sample_run
from tests.report.test_quality import measured_quality

GIB = 1 << 30
RECORDS = [*sample_run(), *measured_quality()]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    content = gather_content(RECORDS)
    return list(csv.DictReader(io.StringIO(charts_csv_text(charts(content.results), content))))


def of(rows: list[dict[str, str]], chart: str, **wanted: str) -> list[dict[str, str]]:
    return [row for row in rows if row["chart"] == chart and wanted.items() <= row.items()]


def planned(precision: str, r: int) -> Any:
    (record,) = (
        record
        for record in RECORDS
        if record.kind == "plan"
        and record.point.precision == precision
        and record.point.lora is not None
        and record.point.lora.r == r
    )
    return record


def rank_of(rows: list[dict[str, str]]) -> int:
    """Return the rank that a chart shows: that of the records that it names."""
    listed = list(csv.DictReader(io.StringIO(csv_text(RECORDS))))
    ends = [number for part in rows[0]["records"].split(", ") for number in part.split("-")]
    (rank,) = {listed[int(number) - 1]["r"] for number in ends}
    return int(rank)


def test_every_chart_is_there(rows):
    drawn = charts(gather_content(RECORDS).results)
    assert {row["chart"] for row in rows} == {chart.name for chart in drawn}
    assert {row["x_axis"] for row in rows if row["chart"] == "peak"} == {"GiB"}


def test_bars_are_the_breakdown(rows):
    bars = of(rows, "peak")
    for precision in ("bf16", "nf4-dq"):
        record = planned(precision, rank_of(bars))
        seen = {row["series"]: float(row["x"]) for row in bars if row["y"].startswith(f"{precision} ")}
        expected = {category_name(name): record.breakdown_bytes.get(name, 0) for name in BREAKDOWN}
        # GiB are a power of two, so not a byte is lost.
        assert {name: round(x * GIB) for name, x in seen.items()} == {
            n: b for n, b in expected.items() if n in seen
        }
        assert sum(seen.values()) * GIB == record.metrics["peak_allocated_bytes"]


def test_the_waterfall_is_that_of_its_plan(rows):
    drawn = of(rows, "waterfall")
    expected = why_not_a_quarter(planned("nf4-dq", rank_of(drawn)))
    assert [float(row["x"]) * GIB for row in drawn] == [row.bytes for row in expected]


def test_lines_over_the_rank_are_peaks_and_speeds(rows):
    for r in (4, 256):
        (peak,) = of(rows, "rank", series="nf4, planned", figure="0", x=str(r))
        (speed,) = of(rows, "rank", series="nf4, planned", figure="1", x=str(r))
        assert float(peak["y"]) * GIB == planned("nf4", r).metrics["peak_allocated_bytes"]
        assert float(speed["y"]) == planned("nf4", r).metrics["tokens_per_s"]


def test_the_frontier_is_what_no_point_beats(rows):
    known = {
        (record.metrics["peak_reserved_bytes"], record.metrics["tokens_per_s"])
        for record in RECORDS
        if record.kind == "plan"
    }
    dots = [row for row in of(rows, "frontier") if row["series"] != "frontier"]
    assert {(round(float(row["x"]) * GIB), float(row["y"])) for row in dots} == known
    best = [
        (round(float(row["x"]) * GIB), float(row["y"])) for row in of(rows, "frontier", series="frontier")
    ]
    for memory, speed in known:
        beaten = any(m <= memory and s >= speed and (m, s) != (memory, speed) for m, s in known)
        assert ((memory, speed) in best) is not beaten


def test_dots_are_plan_and_measurement(rows):
    dots = of(rows, "accuracy", figure="0", series="bf16")
    planned_peaks = {planned("bf16", r).metrics["peak_allocated_bytes"] for r in (16, 64)}
    assert {float(row["y"]) * GIB for row in dots} == planned_peaks


def test_loss_and_timeline_are_the_recorded_ones(rows):
    measured = [record for record in RECORDS if record.kind == "measurement" and record.outcome == "ok"]
    losses = [float(row["y"]) for row in of(rows, "loss", series="nf4")]
    assert losses in [r.metrics.get("loss") for r in measured if r.point.precision == "nf4"]
    line = of(rows, "timeline", series="bf16")
    expected = planned("bf16", rank_of(line)).detail["timeline"]
    assert [[int(row["x"]), round(float(row["y"]) * GIB)] for row in line] == expected


def csv_rows(records: list[Any]) -> list[dict[str, str]]:
    content = gather_content(records)
    return list(csv.DictReader(io.StringIO(charts_csv_text(charts(content.results), content))))


def sized(model: str, params: int, precision: str) -> Any:
    record = plan(precision, 16)
    point = record.point.model_copy(update={"model": model})
    return replace(record, point=point, metrics=record.metrics | {"total_params": params})


def test_bars_at_rest_are_the_static_breakdown(rows):
    bars = of(rows, "rest")
    record = planned("nf4", rank_of(bars))
    seen = {row["series"]: round(float(row["x"]) * GIB) for row in bars if row["y"].startswith("nf4 ")}
    parts = record.detail["static_breakdown_bytes"]
    assert seen == {category_name(name): size for name, size in parts.items()}


def test_lines_over_the_sequence_are_peaks_and_speeds():
    records = [plan(precision, 16, seq_len=n) for precision in ("bf16", "nf4") for n in (512, 4096)]
    drawn = csv_rows(records)
    for record in records:
        wanted = {"series": record.point.precision, "x": str(record.point.train.seq_len)}
        (peak,) = of(drawn, "seq", figure="0", **wanted)
        (speed,) = of(drawn, "seq", figure="1", **wanted)
        assert float(peak["y"]) * GIB == record.metrics["peak_allocated_bytes"]
        assert float(speed["y"]) == record.metrics["tokens_per_s"]


def test_lines_over_the_model_stand_at_its_parameters():
    records = [sized(f"org/m{size}", size * 10**9, p) for size in (1, 8) for p in ("bf16", "nf4")]
    drawn = of(csv_rows(records), "size", figure="0", series="nf4")
    expected = [
        (record.metrics["total_params"], record.metrics["peak_allocated_bytes"]) for record in records[1::2]
    ]
    assert [(int(float(row["x"])), round(float(row["y"]) * GIB)) for row in drawn] == expected


def test_the_longest_sequence_of_each_card_is_the_longest_plan_that_fits():
    def held(n: int, fits: bool) -> Any:
        record = plan("nf4", 16, seq_len=n)
        return replace(record, detail={"fits": [{"gpu": "L4", "memory_bytes": GIB, "fits": fits}]})

    drawn = csv_rows([held(512, True), held(1024, True), held(2048, False)])
    (cell,) = of(drawn, "reach")
    assert (cell["x"], cell["y"], cell["text"], float(cell["z"])) == ("nf4", "L4", "1,024", 1.0)


def test_few_plans_beside_measurements_are_bars_of_both():
    record = plan("nf4", 16)
    drawn = of(csv_rows([record, measurement(record, 0)]), "accuracy", figure="0")
    seen = {row["series"]: round(float(row["x"]) * GIB) for row in drawn}
    peak = record.metrics["peak_allocated_bytes"]
    assert seen == {"planned": peak, "measured": int(peak * 1.004)}


def test_each_chart_there_can_be_has_a_test_of_its_data():
    tested = {"fits", "reach", "peak", "rest", "waterfall", "rank", "seq", "size", "frontier", "accuracy"}
    tested |= {"quality", "loss", "timeline"}
    assert len(tested) == len(BUILDERS)


def test_the_map_is_what_was_held_against_the_cards(rows):
    cells = of(rows, "fits", y="RTX 4090")
    assert len(cells) == 4
    for row in cells:
        fit, _ = planned(row["x"], rank_of(cells)).fits
        assert (row["text"], float(row["z"])) == (("fits", 2.0) if fit.fits else ("no", 0.0))


def test_errors_by_layer_are_means_over_their_modules(rows):
    # Layer 0: (8 % + 10 %) / 2; layer 1: 12 %.
    assert [(row["x"], float(row["y"])) for row in of(rows, "quality", series="nf4")] == [
        ("0", pytest.approx(9.0)),
        ("1", pytest.approx(12.0)),
    ]
