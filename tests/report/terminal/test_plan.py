"""Plans as text for a terminal, from hand-made records."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qbench.records.record import Record
from qbench.report.terminal.plan import plan_lines
from qbench.report.terminal.table import WIDTH
from qbench.scenario.expand import point_from
from tests.comparison.hand_made import make_point
from tests.report import sample_run

GIB = 1 << 30


def plan(precision: str, r: int) -> Record:
    """Return a plan that was held against no card."""
    return with_fits(sample_run.plan(precision, r))


def with_fits(record: Record, *fits: tuple[str, int, int]) -> Record:
    """Return a plan held against cards, each given as name, memory and room in bytes."""
    rows = [
        {"gpu": name, "memory_bytes": memory, "fits": room >= 0, "headroom_bytes": room}
        for name, memory, room in fits
    ]
    return replace(record, detail={**record.detail, "fits": rows})


def starting(lines: list[str], start: str) -> str:
    (line,) = (line for line in lines if line.strip().startswith(start))
    return " ".join(line.split())


def test_one_plan_is_told_figure_by_figure():
    lines = plan_lines([with_fits(plan("nf4-dq", 16), ("RTX 4090", 24 * GIB, 5 * GIB))])
    assert lines[0].startswith("Llama-2-7b-hf, nf4-dq, rank 16, batch 1, 2,048 tokens")
    # 39,976,960 of 6,738,415,616 + 39,976,960: 0.59 %.
    assert starting(lines, "Trainable") == "Trainable 39,976,960 of 6,778,392,576 parameters (0.59 %)"
    assert starting(lines, "RTX 4090") == "RTX 4090 24.00 GiB fits, 5.00 GiB left"
    # Of the linear weights, half a byte each: 6,476,005,376 / 2 B = 3.02 GiB.
    assert starting(lines, "quantized") == "quantized 3.02 GiB for 6,476,005,376 parameters"


def test_the_shares_at_the_peak_add_up():
    lines = plan_lines([plan("bf16", 16)])
    start = lines.index("At the peak:") + 1
    block = lines[start : lines.index("", start)]
    shares = [float(line.split()[-2]) for line in block]
    assert abs(sum(shares) - 100) < 0.5
    assert "logits and loss" in block[-1]
    assert not [line for line in block if "workspace" in line or " 0 B" in line]


def test_a_plan_that_does_not_fit_says_by_how_much():
    lines = plan_lines([with_fits(plan("fp32", 16), ("T4", 15 * GIB, -3 * GIB))])
    assert starting(lines, "T4") == "T4 15.00 GiB does not fit, would reserve 3.00 GiB more than it has"


def test_how_a_card_holds_a_plan_is_told():
    record = with_fits(plan("bf16", 16), ("T4", 15 * GIB, GIB))

    def told(**changes: Any) -> str:
        fits = [{**record.detail["fits"][0], **changes}]
        return starting(plan_lines([replace(record, detail={**record.detail, "fits": fits})]), "T4")

    late = "fits only after the allocator has emptied its cache, which takes time in every step"
    assert told(num_alloc_retries=2, verdict="tight") == f"T4 15.00 GiB {late}"
    # In fragments an allocation can fail with room to spare.
    shortage = {"phase": "forward", "op": "", "module": "", "requested_bytes": GIB, "free_bytes": GIB // 2}
    why = "out of memory in forward: a tensor requests 1.00 GiB, 512.0 MiB free"
    does_not_fit = told(fits=False, verdict="does not fit", shortage=shortage)
    assert does_not_fit == f"T4 15.00 GiB does not fit ({why})"


def test_without_a_named_card_the_smallest_that_holds_it_is_named():
    record = plan("bf16", 16)
    record = replace(record, metrics=record.metrics | {"device_bytes": 20 * GIB}, detail={})
    (card,) = [line for line in plan_lines([record]) if "smallest in the catalog" in line]
    size = float(card.split(" GiB")[0].split()[-1])
    assert 20 <= size < 24
    huge = replace(record, metrics=record.metrics | {"device_bytes": 2000 * GIB})
    assert any("no single NVIDIA GPU" in line for line in plan_lines([huge]))


def test_several_plans_are_a_table_with_what_they_share_above():
    records = [plan(precision, r) for precision in ("bf16", "nf4-dq") for r in (8, 64)]
    lines = plan_lines([with_fits(record, ("RTX 4090", 24 * GIB, GIB // 2)) for record in records])
    assert lines[0].startswith("Llama-2-7b-hf, batch 1, 2,048 tokens")
    assert "rank" not in lines[0]
    header, rule, *rows = lines[2:8]
    assert header.split()[:3] == ["precision", "r", "Peak"]
    assert set(rule) == {"-"}
    assert [row.split()[:2] for row in rows] == [
        ["bf16", "8"],
        ["bf16", "64"],
        ["nf4-dq", "8"],
        ["nf4-dq", "64"],
    ]
    assert all(row.endswith("0.50 left") for row in rows)
    assert any(line.startswith("QLoRA (nf4-dq) of Llama-2-7b-hf needs") for line in lines)


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_nothing_is_wider_than_a_terminal(columns: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    caveat = "a caveat that is very long because it explains a matter at length, " * 4
    long = [with_fits(plan(p, r), ("RTX 4090", 24 * GIB, GIB)) for p in ("bf16", "nf4") for r in (8, 64)]
    long = [replace(record, detail=record.detail | {"caveats": [caveat]}) for record in long]
    for records in (long, long[:1]):
        lines = plan_lines(records)
        assert max(map(len, lines)) <= min(columns, WIDTH)
        assert caveat.strip(", ").split()[-1] in " ".join(lines)


def test_several_cards_have_a_time_each_and_a_tight_one_no_room():
    record = with_fits(plan("bf16", 8), ("A100", 80 * GIB, 60 * GIB), ("L4", 22 * GIB, 0))
    first, second = record.detail["fits"]
    fits = [{**first, "step_time_s": 1.5}, {**second, "step_time_s": 4.0, "num_alloc_retries": 3}]
    lines = plan_lines([replace(record, detail={**record.detail, "fits": fits}), plan("bf16", 16)])
    (row,) = (line for line in lines if line.startswith("bf16") and " 8 " in line)
    assert "60.00 left, 1.5 s" in row
    assert row.endswith("tight, 4 s")


def test_many_cards_become_one_column_with_the_smallest_that_holds():
    cards = [("A100", 80 * GIB, 60 * GIB), ("T4", 15 * GIB, -5 * GIB), ("L4", 22 * GIB, 2 * GIB)]
    none = [(name, memory, -GIB) for name, memory, _ in cards]
    lines = plan_lines([with_fits(plan("bf16", 8), *cards), with_fits(plan("bf16", 16), *none)])
    rows = [line for line in lines if line.startswith("bf16")]
    assert [row.split()[-1] for row in rows[:2]] == ["L4", "none"]
    header = lines[lines.index("GiB left on each GPU, and the time of a step:") + 1]
    assert header.split() == ["precision", "r", "A100", "T4", "L4"]
    assert rows[2].split()[2:] == ["60.00", "left", "5.00", "short", "2.00", "left"]
    assert len(rows) == 4


def test_more_cards_than_a_terminal_is_wide_go_on_in_another_table():
    cards = [(f"a card with a long name, number {number}", 24 * GIB, GIB) for number in range(9)]
    lines = plan_lines([with_fits(plan("bf16", r), *cards) for r in (8, 16)])
    assert max(map(len, lines)) <= WIDTH
    assert sum("number" in line for line in lines) > 2
    assert all(any(name in line for line in lines) for name, _, _ in cards)


def test_the_recipe_and_that_there_is_no_autocast_are_named_though_they_are_the_default():
    title = " ".join(plan_lines([plan("bf16", 8)])[:2])
    assert "checkpointing, recipe peft, no autocast; planned for cuda" in title


def test_a_setting_that_does_not_touch_a_row_is_not_said_of_it():
    def titled(*precisions: str) -> str:
        records = [plan(precision, 16) for precision in precisions]
        points = [point_from(record.point.model_dump(), {"adapter_dtype": "bf16"}) for record in records]
        shown = plan_lines([replace(each, point=point) for each, point in zip(records, points, strict=True)])
        return " ".join(shown).partition("  ")[0]

    # peft keeps the adapters of a 16-bit base in fp32, whatever is set.
    assert "adapter_dtype" not in titled("bf16")
    assert "adapter_dtype bf16;" in titled("nf4")
    assert "adapter_dtype bf16 (QLoRA);" in titled("bf16", "nf4")


def test_a_title_of_several_models_begins_with_a_capital():
    points = [make_point(precision="bf16", model=model) for model in ("a/x", "b/y")]
    records = [replace(plan("bf16", 8), point=point) for point in points]
    assert plan_lines(records)[0].startswith("Rank 16, batch 1")


def test_a_card_that_does_not_hold_a_step_has_no_time_and_no_price_for_it():
    held = {"step_time_s": 1.5, "usd_per_hour": 0.5, "time": {"parts_s": {"matmul": 1.5}}}
    record = with_fits(plan("bf16", 8), ("T4", 15 * GIB, -3 * GIB), ("A100", 80 * GIB, 62 * GIB))
    record = replace(
        record, detail={**record.detail, "fits": [{**fit, **held} for fit in record.detail["fits"]]}
    )
    lines = plan_lines([record])
    assert starting(lines, "T4") == "T4 15.00 GiB does not fit, would reserve 3.00 GiB more than it has"
    assert starting(lines, "A100") == "A100 80.00 GiB fits, 62.00 GiB left; 1.5 s a step; from $0.50/h"
    assert not any("matmul" in line for line in lines)


def test_a_card_with_another_peak_or_without_a_kernel_says_so():
    def held(peak_bytes: int | None, room: int | None) -> list[str]:
        record = with_fits(plan("bf16", 8), ("T4", 15 * GIB, -1))
        (fit,) = record.detail["fits"]
        verdict = "unknown" if room is None else "does not fit"
        fit = {**fit, "peak_allocated_bytes": peak_bytes, "headroom_bytes": room, "verdict": verdict}
        records = [replace(record, detail={**record.detail, "fits": [fit]})]
        return [starting(plan_lines(records), "T4"), plan_lines([*records, plan("nf4", 8)])[-1]]

    peak = plan("bf16", 8).metrics["peak_allocated_bytes"]
    assert held(peak, -3 * GIB)[0] == "T4 15.00 GiB does not fit, would reserve 3.00 GiB more than it has"
    own = "T4 15.00 GiB does not fit, would reserve 3.00 GiB more than it has; peak allocated 2.00 GiB"
    assert held(2 * GIB, -3 * GIB)[0] == own
    assert held(None, None)[0] == "T4 15.00 GiB has no kernel for this"


def test_a_plan_that_failed_has_a_row_that_says_so():
    failed = replace(plan("bf16", 8), outcome="error", metrics={}, detail={"error": "no such module"})
    lines = plan_lines([failed, plan("bf16", 16)])
    (row,) = [line for line in lines if line.startswith("bf16") and " 8 " in line]
    assert "error" in row.split()


def test_settings_that_are_no_defaults_are_named():
    point: Any = make_point(precision="bf16", r=8, optim="adamw_8bit", use_dora=True)
    lines = plan_lines([replace(plan("bf16", 8), point=point)])
    title = " ".join(lines[: lines.index("")])
    assert "optim adamw_8bit" in title
    assert "use_dora" in title
