"""The history as table, JSON values and chart; its change points are made by hand."""

from __future__ import annotations

import json

from qbench.comparison.methods import Difference
from qbench.comparison.trend import ChangePoint, RunValue, Series
from qbench.report.trend import history_charts, trend_chart, trend_document, trend_figure, trend_table
from tests.comparison.hand_made import make_point, make_record

GIB = 1 << 30


def series(*values: int, changes: tuple[ChangePoint, ...] = ()) -> Series:
    runs = tuple(
        RunValue(run_id=f"<run {n}>", created_at=f"2026-11-0{n + 1}T02:00:00+00:00", value=value, software=())
        for n, value in enumerate(values)
    )
    return Series(
        point=make_point(),
        kind="plan",
        device="cuda",
        machine="",
        metric="peak_allocated_bytes",
        unit="bytes",
        runs=runs,
        changes=changes,
    )


STEP = ChangePoint(
    index=2,
    before=14 * GIB,
    after=15 * GIB,
    direction="worse",
    software=(Difference("peft", "0.21.2", "0.22.0"),),
)
STEPPED = series(14 * GIB, 14 * GIB, 15 * GIB, 15 * GIB, 15 * GIB, changes=(STEP,))
FLAT = series(14 * GIB, 14 * GIB, 14 * GIB)


def test_a_row_for_each_level():
    name = "Llama-2-7b-hf bf16 r=16 b=1 s=2048, planned for cuda"
    assert trend_table([STEPPED]).rows == (
        (name, "peak_allocated_bytes", "<run 0>", "2026-11-01 02:00", "2", "14.00 GiB", "", "", ""),
        ("", "", "<run 2>", "2026-11-03 02:00", "3", "15.00 GiB", "+7.1 %", "worse", "peft 0.21.2 -> 0.22.0"),
    )


def test_json_has_every_run_and_every_step():
    (values,) = json.loads(json.dumps(trend_document([STEPPED])))
    assert [sample["value"] for sample in values["samples"]] == [
        14 * GIB, 14 * GIB, 15 * GIB, 15 * GIB, 15 * GIB
    ]  # fmt: skip
    (step,) = values["changes"]
    assert (step["run_id"], step["verdict"], step["what_changed"]) == (
        "<run 2>", "worse", ["peft 0.21.2 -> 0.22.0"]
    )  # fmt: skip


def test_a_figure_has_each_run_in_gib_and_a_ring_at_each_step():
    line, ring = trend_figure(STEPPED).data
    assert list(line.y) == [14, 14, 15, 15, 15]
    assert (list(ring.x), list(ring.y)) == (["2026-11-03T02:00:00+00:00"], [15])
    assert line.hovertext[0] == "&lt;run 0&gt;: 14.00 GiB"
    assert len(trend_figure(FLAT).data) == 1


def test_series_with_steps_are_drawn_first_and_the_rest_is_counted():
    chart = trend_chart([*[FLAT] * 12, STEPPED])
    assert chart is not None
    assert len(chart.figures) == 12
    assert len(chart.figures[0].data) == 2
    assert chart.caption.endswith(" 1 more are not drawn.")
    assert trend_chart([]) is None


def test_records_of_several_runs_get_a_section_and_those_of_one_none():
    records = [make_record(run_id=f"night-{n}", created_at=f"2026-11-0{n}T00:00:00+00:00") for n in (1, 2, 3)]
    (chart,) = history_charts(records)
    # Planned memory is the one default metric that these records have: 14 GiB each.
    assert [list(figure.data[0].y) for figure in chart.figures] == [[14, 14, 14]]
    assert history_charts([make_record()] * 3) == []
