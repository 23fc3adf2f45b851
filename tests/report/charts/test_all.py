from __future__ import annotations

from dataclasses import replace

import pytest

from qbench.comparison.results import gather
from qbench.records.metrics import BREAKDOWN
from qbench.report.charts import memory, sweep
from qbench.report.charts.all import charts
from qbench.report.charts.style import CATEGORY_COLOURS, PRECISION_COLOURS, ValueAxis, byte_axis, safe
from qbench.scenario.schema import PRECISIONS
from qbench.units import GIB
from tests.comparison.hand_made import ENVIRONMENT, make_record
from tests.report.sample_run import measurement, plan, sample_run


@pytest.fixture(scope="module")
def results():
    return gather(sample_run())


def names(found):
    return [chart.name for chart in found]


def test_every_chart_of_a_full_run(results):
    found = names(charts(results))
    assert found == ["fits", "peak", "rest", "waterfall", "rank", "frontier", "accuracy", "loss", "timeline"]


def test_no_data_no_chart():
    assert charts(gather([make_record()])) == []
    assert charts([]) == []


def test_every_category_and_precision_has_a_colour_of_its_own():
    assert tuple(CATEGORY_COLOURS) == BREAKDOWN
    assert set(PRECISION_COLOURS) == set(PRECISIONS)
    for colours in (CATEGORY_COLOURS, PRECISION_COLOURS):
        assert len(set(colours.values())) == len(colours)


def test_bars_at_the_peak_add_up_to_the_peak(results):
    (figure,) = memory.breakdown_at_peak(results).figures
    planned = {r.point.precision: r for r in results if r.kind == "plan" and r.point.lora.r == 32}
    labels = [label.split("</b>")[0].removeprefix("<b>") for label in figure.layout.yaxis.ticktext]
    assert labels == ["fp32", "bf16", "nf4", "nf4-dq"]
    for row, precision in enumerate(labels):
        total = sum(trace.x[row] for trace in figure.data)
        assert total * GIB == pytest.approx(planned[precision].value("peak_allocated_bytes"))
    assert figure.layout.xaxis.rangemode == "tozero"


def test_bars_keep_one_colour_for_a_category(results):
    figures = [memory.breakdown_at_peak(results).figures[0], memory.breakdown_at_rest(results).figures[0]]
    for figure in figures:
        assert figure.data[0].name == "weights"
        assert {trace.marker.color for trace in figure.data if trace.name == "weights"} == {
            CATEGORY_COLOURS["weights"]
        }


def test_few_models_share_the_bars_and_many_leave_one():
    def run(models):
        records = [plan(p, 16) for p in ("bf16", "nf4", "nf4-dq")]
        return gather(
            [
                replace(record, point=record.point.model_copy(update={"model": f"org/m{i}"}))
                for i in range(models)
                for record in records
            ]
        )

    assert len(memory.breakdown_at_peak(run(4)).figures[0].data[0].x) == 12
    assert len(memory.breakdown_at_peak(run(5)).figures[0].data[0].x) == 3


def test_the_waterfall_ends_at_the_peak(results):
    chart = memory.waterfall(results)
    (figure,) = chart.figures
    trace = figure.data[0]
    assert trace.measure[0] == trace.measure[-1] == "absolute"
    # Rank 32, the middle of the sweep; base 3.14 + 0.37 + 0.10 + 0.49 GiB, as in the waterfall's own test.
    assert figure.layout.yaxis.ticktext[0] == "<b>base weights in 16 bit<br>12.55 GiB</b>"
    assert "model.embed_tokens.weight (embeddings are a table" in chart.caption
    assert chart.title == "Why nf4-dq is not a quarter of 16 bit"


@pytest.mark.parametrize("name", ["org/llama-3.1-8b", "org/SmolLM2-135M"])
def test_a_caption_spells_names_as_they_are(name):
    def run(*models):
        records = [plan(precision, 16) for precision in ("bf16", "nf4")]
        return gather(
            replace(record, point=record.point.model_copy(update={"model": model}))
            for model in models
            for record in records
        )

    found = charts(run(name))
    assert {chart.name for chart in found} >= {"peak", "rest", "waterfall", "timeline"}
    for chart in found:
        if chart.name in ("peak", "rest", "waterfall", "timeline"):
            assert chart.caption.startswith(f"{name.removeprefix('org/')}, ")
    # Where neither a model nor a precision is named, the sentence begins as any other.
    assert memory.breakdown_at_peak(run(name, "org/other")).caption.startswith("Rank 16, batch 1, ")


def test_against_rank_draws_a_line_for_each_precision_and_kind(results):
    memory, speed = sweep.against_rank(results).figures
    lines = {trace.name: trace for trace in memory.data}
    assert set(lines) == {
        f"{p}, {k}" for p in ("fp32", "bf16", "nf4", "nf4-dq") for k in ("planned", "measured")
    }
    assert list(lines["nf4, planned"].x) == [4, 8, 16, 32, 64, 128, 256]
    assert list(lines["nf4, measured"].x) == [16, 64]
    assert lines["nf4, planned"].line.color == lines["nf4, measured"].line.color == PRECISION_COLOURS["nf4"]
    assert memory.layout.yaxis.title.text == "Peak allocated (GiB)"
    assert speed.layout.yaxis.title.text == "Throughput (tokens/s)"


def test_a_title_names_what_is_drawn(results):
    assert sweep.against_rank(results).title == "Memory and throughput against rank"
    records = [make_record(r=r) for r in (8, 16)]
    assert sweep.against_rank(gather(records)).title == "Memory against rank"


def test_only_settings_that_vary_are_drawn(results):
    assert sweep.against_seq_len(results) is None
    assert sweep.against_model_size(results) is None


def test_against_sequence_length():
    records = [plan(p, 16, seq_len=s) for p in ("bf16", "nf4") for s in (512, 1024)]
    memory, _ = sweep.against_seq_len(gather(records)).figures
    assert list(memory.data[0].x) == [512, 1024]


def test_models_stand_at_their_parameters():
    records = []
    for size in (1e9, 70e9):
        record = plan("bf16", 16)
        point = record.point.model_copy(update={"model": f"org/m{size:.0f}"})
        records.append(replace(record, point=point, metrics=record.metrics | {"total_params": size}))
    memory, _ = sweep.against_model_size(gather(records)).figures
    assert list(memory.data[0].x) == [1e9, 70e9]
    assert memory.layout.xaxis.type == "log"


def test_few_meetings_of_plan_and_measurement_are_bars_and_many_are_dots(results):
    planned = plan("nf4", 16)
    (memory, _) = sweep.planned_against_measured(gather([planned, measurement(planned, 0)])).figures
    assert [trace.type for trace in memory.data] == ["bar", "bar"]
    (memory, _) = sweep.planned_against_measured(results).figures  # 8 points
    assert memory.data[0].name == "equal"
    dots = [trace for trace in memory.data if trace.mode == "markers"]
    assert sum(len(trace.x) for trace in dots) == 8


def test_dots_are_capped_at_the_largest_errors(monkeypatch):
    monkeypatch.setattr(sweep, "MOST_DOTS", 7)
    records = []
    for r in range(1, 11):
        planned = plan("nf4", r)
        records += [planned, measurement(planned, 0, error=r / 100)]
    chart = sweep.planned_against_measured(gather(records))
    drawn = [text for trace in chart.figures[0].data[1:] for text in trace.customdata]
    assert len(drawn) == 7
    assert not any("r=3 " in text for text in drawn)
    assert any("r=10 " in text for text in drawn)
    assert "The 7 points with the largest error are drawn." in chart.caption


def test_loss_starts_at_step_one(results):
    (figure,) = sweep.loss_by_step(results).figures
    assert [trace.name for trace in figure.data] == ["fp32", "bf16", "nf4", "nf4-dq"]
    assert list(figure.data[0].x) == list(range(1, 11))


def test_a_thinned_timeline_keeps_its_peak():
    timeline = [[i, GIB if i == 4321 else i] for i in range(10_000)]
    (figure,) = sweep.timeline(gather([make_record(detail={"timeline": timeline})])).figures
    assert len(figure.data[0].y) <= sweep.MOST_SAMPLES
    assert max(figure.data[0].y) == 1.0


def test_many_lines_through_a_step_have_a_figure_each_of_one_scale(results):
    figures = sweep.timeline(results).figures
    assert [figure.data[0].name for figure in figures] == ["fp32", "bf16", "nf4", "nf4-dq"]
    assert len({(figure.layout.xaxis.range, figure.layout.yaxis.range) for figure in figures}) == 1
    assert figures[0].layout.yaxis.range[0] == 0
    few = [result for result in results if result.point.precision in ("bf16", "nf4")]
    (figure,) = sweep.timeline(few).figures
    assert len(figure.data) == 2


def test_a_wide_range_is_logarithmic_and_says_so():
    records = [
        make_record(seq_len=n, metrics={"peak_allocated_bytes": size << 30}) for n, size in ((1, 1), (2, 50))
    ]
    (figure,) = sweep.against_seq_len(gather(records)).figures
    assert figure.layout.yaxis.type == "log"
    assert figure.layout.yaxis.title.text == "Peak allocated (GiB), logarithmic"
    narrow = [
        make_record(seq_len=n, metrics={"peak_allocated_bytes": size << 30}) for n, size in ((1, 1), (2, 49))
    ]
    (figure,) = sweep.against_seq_len(gather(narrow)).figures
    assert figure.layout.yaxis.rangemode == "tozero"


def test_devices_are_never_mixed_and_titles_name_them():
    cpu = ENVIRONMENT | {"device": "cpu"}
    records = [plan("bf16", 16), plan("nf4", 16), replace(plan("bf16", 16), environment=cpu)]
    found = charts(gather(records))
    assert {"peak-cuda", "peak-cpu"} < set(names(found))
    by_name = {chart.name: chart for chart in found}
    assert len(by_name["peak-cuda"].figures[0].data[0].x) == 2
    assert len(by_name["peak-cpu"].figures[0].data[0].x) == 1
    assert by_name["peak-cpu"].title.endswith("(cpu)")


def test_one_machine_stands_for_a_device():
    other = ENVIRONMENT | {"device_name": "NVIDIA L4"}
    planned = plan("nf4", 16)
    records = [measurement(planned, 0), measurement(plan("bf16", 16), 0)]
    stray = replace(measurement(planned, 0), environment=other, metrics={"loss": [9.0, 9.0]})
    (chart,) = (chart for chart in charts(gather([*records, stray])) if chart.name == "loss")
    assert 9.0 not in [value for trace in chart.figures[0].data for value in trace.y]


def test_legend_names_each_trace_once(results):
    legend = sweep.against_rank(results).legend
    assert len(legend) == 8
    assert {item.shape for item in legend} == {"solid", "dotted"}
    assert [item.shape for item in memory.breakdown_at_rest(results).legend] == ["box"] * 3
    assert memory.waterfall(results).legend == []


def test_text_of_records_is_no_markup_for_plotly():
    assert safe('<a href="javascript:alert(1)">&') == '&lt;a href="javascript:alert(1)"&gt;&amp;'
    planned = [
        replace(plan(p, 16), point=plan(p, 16).point.model_copy(update={"model": f"<b>{i}"}))
        for p in ("bf16", "nf4")
        for i in range(2)
    ]
    (figure,) = memory.breakdown_at_peak(gather(planned)).figures
    assert figure.layout.yaxis.ticktext[0].startswith("<b>&lt;b&gt;0 bf16</b>")


def test_figures_are_transparent(results):
    for chart in charts(results):
        for figure in chart.figures:
            assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"
            assert figure.layout.xaxis.title.text


def test_a_small_model_is_drawn_in_its_own_unit():
    small = [
        make_record(precision=precision, metrics={"breakdown_bytes": {"weights": size, "adapters": 1 << 10}})
        for precision, size in (("bf16", 3 << 20), ("nf4", 1 << 20))
    ]
    chart = memory.breakdown_at_peak(gather(small))
    assert chart.figures[0].layout.xaxis.title.text == "MiB"
    assert list(chart.figures[0].data[0].x) == [3.0, 1.0]
    assert byte_axis([None, 5 << 30]).unit == "GiB"
    assert byte_axis([900, None]) == ValueAxis("KiB", 1024)
    assert byte_axis([]).scaled(None) is None
