"""No report shows what ran on a null GPU without saying so, and none compares it with a GPU's figures."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from qbench.comparison.baselines import accept
from qbench.comparison.check import check
from qbench.comparison.methods import pair_results
from qbench.comparison.results import gather, predictions
from qbench.comparison.trend import FEWEST_RUNS, trend
from qbench.measure.null import on_null
from qbench.measure.task import Measurement
from qbench.notebook import Records
from qbench.notebook_results import figures
from qbench.records.document import RecordPlaces
from qbench.records.frame import records_frame
from qbench.records.record import Record
from qbench.records.store import write_records
from qbench.report.charts.all import charts
from qbench.report.ci.check import check_document, point_text, summary_markdown
from qbench.report.ci.junit import junit_xml
from qbench.report.ci.sarif import sarif_document
from qbench.report.content import gather_content
from qbench.report.export import summary_document, write_report
from qbench.report.terminal.run import run_lines
from qbench.report.trend import series_name, trend_document
from qbench.web.runs import open_runs, runs_view
from tests.comparison.hand_made import ENVIRONMENT, near_pairs
from tests.report.sample_run import measurement, plan

CARD = "RTX 4090"


def planned(precision: str, r: int) -> Record:
    made = plan(precision, r)
    return replace(made, environment={**made.environment, "card": CARD})


def on_null_gpu(made: Record, error: float = 0.0, run_id: str = "sample") -> Record:
    """Return what a null GPU would leave of a measurement."""
    real = measurement(made, 0, error)
    done = on_null(Measurement(outcome="ok", metrics=real.metrics, detail=real.detail))
    environment = {**ENVIRONMENT, "device": "null", "device_name": CARD, "card": CARD}
    return replace(real, metrics=done.metrics, detail=done.detail, environment=environment, run_id=run_id)


def null_run() -> list[Record]:
    plans = [planned(precision, r) for precision in ("bf16", "nf4") for r in (8, 16, 32)]
    return [*plans, *map(on_null_gpu, plans)]


def said(texts: Iterable[object]) -> list[str]:
    """Return the texts that name the null GPU."""
    return [str(text) for text in texts if "null GPU" in str(text)]


def test_nothing_of_a_gpu_is_left_and_the_host_has_its_time() -> None:
    record = on_null_gpu(planned("bf16", 8))
    assert not {"step_time_s", "tokens_per_s", "loss"} & set(record.metrics)
    assert len(record.metrics["host_time_s"]) == 10


def test_a_plan_for_the_card_is_set_beside_it_and_no_other() -> None:
    beside, other = planned("bf16", 8), plan("bf16", 8)
    (met,) = predictions(gather([other, beside, on_null_gpu(beside)]))
    assert met.plan.records == (beside,)
    assert predictions(gather([other, on_null_gpu(beside)])) == []


def test_its_figures_are_compared_with_those_of_a_null_gpu_alone() -> None:
    lora, qlora = planned("bf16", 8), planned("nf4", 8)
    assert [
        pair.candidate.device for pair in pair_results(gather([on_null_gpu(lora), on_null_gpu(qlora)]))
    ] == ["null"]
    mixed = [measurement(lora, 0), on_null_gpu(qlora)]
    assert pair_results(gather(mixed)) == []
    assert near_pairs(mixed) == []


def test_a_check_compares_it_with_no_gpu() -> None:
    made = planned("bf16", 8)
    found = check([measurement(made, 0)], [on_null_gpu(made)])
    assert found.exit_code() == 2


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    paths = write_report(null_run(), tmp_path_factory.mktemp("report"), "null")
    return {suffix: path.read_text() for suffix, path in paths.items() if suffix != "parquet"}


@pytest.mark.parametrize("suffix", ["html", "md"])
def test_a_page_says_so_in_scope_headline_accuracy_and_tables(files: dict[str, str], suffix: str) -> None:
    content = gather_content(null_run())
    assert "6 processes on a null GPU" in content.scope
    assert (
        content.accuracy
        == "The planned peak equals that of the null GPU to the byte at 6 points that were run on one."
    )
    assert said(content.headline)
    for sentence in (content.scope, content.accuracy, "on a null GPU"):
        assert sentence in files[suffix]
    assert "measured process" not in files[suffix]
    assert "Peak allocated, measured" not in files[suffix]


def test_each_row_of_an_export_has_the_device(files: dict[str, str]) -> None:
    rows = files["csv"].splitlines()
    at = rows[0].split(",").index("device")
    assert [row.split(",")[at] for row in rows[1:]].count("null") == 6
    frame = records_frame(null_run())
    assert list(frame["device"]).count("null") == 6


def test_each_chart_with_its_figures_says_so(files: dict[str, str]) -> None:
    drawn = [chart for chart in charts(gather(null_run())) if any(r.device == "null" for r in chart.results)]
    assert {"accuracy"} < {chart.name for chart in drawn}
    for chart in drawn:
        assert said([chart.title, chart.caption]), chart.name
    assert "null" in files["charts.csv"]
    assert set(figures(null_run()))


def test_the_terminal_and_the_notebook_say_so() -> None:
    header, _, first, *_ = run_lines(gather(null_run()))
    assert "Peak on a null GPU" in header
    assert f"null GPU {CARD}" in first
    assert said([Records(tuple(null_run()), "run")._repr_html_()])


def test_a_check_and_its_exports_say_so() -> None:
    made = planned("bf16", 8)
    found = check([on_null_gpu(made)], [on_null_gpu(made, error=0.1)])
    assert found.exit_code() == 1
    assert said(map(point_text, found.findings))
    assert said([summary_markdown(found, 1)])
    assert '"device": "null"' in json.dumps(check_document(found, 1))
    assert said([junit_xml(found).decode()])
    assert said([json.dumps(sarif_document(found, RecordPlaces(file="b.json")))])


def test_a_trend_says_so() -> None:
    made = planned("bf16", 8)
    runs = [
        replace(on_null_gpu(made, run_id=f"run-{day}"), created_at=f"2026-11-{day}T00:00:00+00:00")
        for day in range(10, 10 + FEWEST_RUNS)
    ]
    series = trend(runs, ["peak_allocated_bytes"])
    assert said(map(series_name, series))
    assert [one["device"] for one in trend_document(series)] == ["null"]


def test_a_summary_has_the_device() -> None:
    document = summary_document(gather_content(null_run()))
    assert {pair["device"] for pair in document["comparison"]} == {"cuda", "null"}
    assert said(document["headline"])


def test_the_page_of_a_run_says_so(tmp_path: Path) -> None:
    write_records(tmp_path / "on-null" / "records.jsonl", null_run())
    runs = open_runs([tmp_path / "on-null"])
    assert "6 processes on a null GPU" in str(runs_view(runs, str))
    for suffix in ("html", "md"):
        assert "on a null GPU" in runs[0].file(suffix)


def test_a_baseline_says_so() -> None:
    made = planned("bf16", 8)
    kept = accept([], [on_null_gpu(made)], "first")
    assert [record.device for record in kept.records] == ["null"]
    found = check(kept.records, [on_null_gpu(made, error=0.1)])
    assert said(map(point_text, found.findings))
    assert check(kept.records, [measurement(made, 0)]).exit_code() == 2
