"""Maps of what fits where, from hand-made plans."""

from __future__ import annotations

from typing import Any

from qbench.comparison.results import gather
from qbench.records.record import Record
from qbench.report.charts.style import WRAP, wrapped
from qbench.report.fits import fits_table, how_far, what_fits
from tests.comparison.hand_made import make_record

GIB = 1 << 30


def held(room: float | None, fits: bool, gpu: str = "T4", memory: int = 16) -> dict[str, Any]:
    return {
        "gpu": gpu,
        "memory_bytes": memory * GIB,
        "fits": fits,
        "headroom_bytes": None if room is None else int(room * GIB),
    }


def plan(precision: str, *fits: dict[str, Any], **settings: Any) -> Record:
    return make_record(precision=precision, detail={"fits": list(fits)}, **settings)


def test_cells_say_what_is_left_and_shades_whether_it_is_enough():
    records = [
        plan("bf16", held(-1.25, False), held(3.0, False, "L4", 24)),
        plan("nf4", held(1.0, True), held(12.0, True, "L4", 24)),
    ]
    chart = what_fits(gather(records))
    assert chart is not None
    (figure,) = chart.figures
    (trace,) = figure.data
    assert list(figure.layout.yaxis.ticktext) == ["T4", "L4"]
    assert list(trace.x) == ["bf16", "nf4"]
    # 1 GiB of 16 is less than a tenth; 3 GiB of room that did not help, in fragments, is no number.
    assert [list(row) for row in trace.text] == [["-1.2", "1.0"], ["no", "12.0"]]
    assert [list(row) for row in trace.z] == [[0, 1], [0, 2]]


def test_a_card_that_does_not_hold_a_plan_has_no_time_and_no_price_in_the_table():
    told = {"usd_per_hour": 0.5, "price_from": "x, 2026", "step_time_s": 2.0, "num_alloc_retries": 1}
    cards = [held(-1.0, False) | told, held(3.0, True, "L4", 24) | told]
    table = fits_table(gather([plan("bf16", *cards)]))
    assert table is not None
    t4, l4 = (dict(zip([column.title for column in table.columns], row, strict=True)) for row in table.rows)
    times = ("USD an hour", "Price from", "Step time")
    assert [t4[title] for title in times] == [None, None, None]
    assert [l4[title] for title in times] == [0.5, "x, 2026", 2.0]
    assert l4["Why"] == "after 1 allocator retry"


def test_several_models_have_a_map_for_each_card():
    records = [
        plan(precision, held(1.0, True), held(9.0, True, "L4", 24), model=model)
        for model in ("org/a", "org/b")
        for precision in ("bf16", "nf4")
    ]
    chart = what_fits(gather(records))
    assert chart is not None
    assert [figure.layout.xaxis.title.text for figure in chart.figures] == [
        "GiB left on T4",
        "GiB left on L4",
    ]
    assert all(list(figure.layout.yaxis.ticktext) == ["a", "b"] for figure in chart.figures)


def test_a_point_that_was_not_planned_is_an_empty_cell():
    records = [
        plan("bf16", held(1.0, True), model="org/a"),
        plan("nf4", held(2.0, True), model="org/a"),
        plan("nf4", held(3.0, True), model="org/b"),
    ]
    chart = what_fits(gather(records))
    assert chart is not None
    assert [list(row) for row in chart.figures[0].data[0].text] == [["1.0", "2.0"], ["", "3.0"]]
    assert chart.figures[0].data[0].z[1][0] is None


def test_how_long_a_sequence_each_card_holds():
    longest = {"bf16": 2048, "nf4": 8192, "fp32": 0}
    records = [
        plan(precision, held(None, tokens <= most), seq_len=tokens)
        for precision, most in longest.items()
        for tokens in (1024, 2048, 4096, 8192)
    ]
    chart = how_far(gather(records))
    assert chart is not None
    (trace,) = chart.figures[0].data
    assert list(trace.x) == ["fp32", "bf16", "nf4"]
    assert list(trace.text[0]) == ["none", "2,048", "8,192"]
    assert list(trace.z[0]) == [0, 1, 2]


def test_without_cards_or_lengths_there_is_no_map():
    assert what_fits(gather([make_record()])) is None
    assert how_far(gather([plan("bf16", held(1.0, True)), plan("nf4", held(1.0, True))])) is None


def test_long_names_take_two_lines_and_no_more():
    assert wrapped("gemma-2-27b") == "gemma-2-27b"
    assert wrapped("gemma-2-27b-instruct-chat") == f"gemma-2-27b-{WRAP}instruct-chat"
    lines = wrapped("x" * 10_000).split(WRAP)
    assert len(lines) == 2
    assert max(map(len, lines)) <= 21
    assert wrapped("<b>") == "&lt;b&gt;"
