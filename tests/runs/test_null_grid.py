"""The grid that is planned and run on null GPUs, and how its two answers are compared."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

from qbench.catalog.gpus import find_gpu
from qbench.cli.null_grid import NullRows
from qbench.measure.null_steps import steps_environment
from qbench.measure.runner import record_of
from qbench.measure.task import Measurement
from qbench.records.parts import Environment
from qbench.records.record import Record
from qbench.records.store import open_store
from qbench.report.null_grid import summary_table, write_null_grid
from qbench.runs.null_grid import GridOutcome, GridResult, GridRow, _kept, grid_rows, random_rows

ROOT = Path(__file__).parents[2]


def answer(outcome: str = "ok", phase: str | None = None, **figures: int) -> GridOutcome:
    return GridOutcome(outcome=outcome, figures=figures, phase=phase)


def test_the_grid_covers_what_moves_memory() -> None:
    rows = grid_rows()
    assert len(rows) == len(set(rows)) >= 240
    capabilities = {find_gpu(row.gpu).compute_capability for row in rows}
    assert capabilities == {(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)}
    assert {row.precision for row in rows} == {"bf16", "fp16", "fp32", "nf4", "nf4-dq", "int8"}
    assert {row.recipe for row in rows} == {"plain", "peft", "trainer", "trl"}
    assert {row.r for row in rows} == {8, 16, 32, 64}
    assert {row.seq_len for row in rows} == {512, 1024, 2048, 4096}
    assert all(row.point.train.seq_len == row.seq_len for row in rows)


def test_a_share_of_the_grid_has_every_card_and_precision() -> None:
    rows = grid_rows(every=10)
    assert rows == grid_rows()[::10]
    assert {row.gpu for row in rows} == {row.gpu for row in grid_rows()}
    assert {row.precision for row in rows} == {row.precision for row in grid_rows()}


def measured(row: GridRow, **other: Environment | str) -> Record:
    environment: Environment = {**steps_environment(row.gpu), **other}  # type: ignore[typeddict-item]
    return record_of(row.task, Measurement(outcome="ok", environment=environment), "test")


def test_what_was_measured_counts_as_long_as_code_and_libraries_are_the_same(tmp_path: Path) -> None:
    row, other_code, other_torch, crashed = grid_rows()[:4]
    versions = {**(steps_environment(other_torch.gpu)["versions"] or {}), "torch": "1.0"}
    with open_store(tmp_path) as store:
        store.append(measured(row))
        store.append(measured(other_code, code_id="of other code"))
        store.append(measured(other_torch, versions=versions))  # type: ignore[arg-type]
        store.append(replace(measured(crashed), outcome="crashed"))
    assert list(_kept(tmp_path)) == [(row.point.point_id, row.gpu)]


def test_answers_are_equal_by_outcome_phase_and_bytes() -> None:
    row = grid_rows()[0]
    same = GridResult(row=row, planned=answer(a=1), on_null=answer(a=1))
    assert same.is_equal
    more = GridResult(row=row, planned=answer(a=1), on_null=answer(a=513))
    assert (more.is_equal, more.differences) == (False, {"a": 512})
    elsewhere = GridResult(
        row=row, planned=answer("oom", "loss", free_bytes=2), on_null=answer("oom", "forward", free_bytes=2)
    )
    assert not elsewhere.is_equal
    refused = GridResult(row=row, planned=answer("refused"), on_null=answer(a=1))
    assert (refused.is_equal, refused.differences) == (False, {})


def test_every_point_of_the_committed_grid_is_equal() -> None:
    with (ROOT / "reports/nullgpu/null_grid.csv").open(newline="", encoding="utf-8") as lines:
        found = list(csv.DictReader(lines))
    assert [(row["gpu"], row["model"], row["precision"]) for row in found] == [
        (row.gpu, row.model, row.precision) for row in grid_rows()
    ]
    assert {row["is_equal"] for row in found} == {"True"}
    short = [row for row in found if row["null_outcome"] == "oom"]
    assert sum(find_gpu(row["gpu"]).memory_bytes < 26e9 for row in short) >= 12
    for row in short:
        assert row["phase"] in ("load", "forward", "loss", "backward", "optimizer")
        assert row["planned_requested_bytes"] == row["null_requested_bytes"] != ""
        assert row["planned_free_bytes"] == row["null_free_bytes"] != ""


def test_the_report_says_that_no_gpu_measured_it(tmp_path: Path) -> None:
    figures = ("static_bytes", "peak_allocated_bytes", "peak_reserved_bytes")
    settings = {"gpu": "T4", "model": "m", "precision": "bf16", "recipe": "peft", "attn": "auto", "r": 8}
    settings |= {"seq_len": 512, "batch": 1, "optim": "sgd", "checkpointing": True}
    equal = {"planned_outcome": "ok", "null_outcome": "ok", "is_equal": True, "difference": "none"}
    rows = [
        settings | equal | {f"{side}_{name}": 1000 for side in ("planned", "null") for name in figures},
        settings | equal | {f"{side}_{name}": 1000 for side in ("planned", "null") for name in figures},
    ]
    rows[1] |= {"null_peak_reserved_bytes": 1250, "is_equal": False, "difference": "peak_reserved_bytes +250"}
    # 250 of 1250 bytes.
    assert summary_table(rows).rows[2] == ("peak_reserved_bytes", 2, 1, "20.000 %")
    text = write_null_grid(rows, "torch 2.13", NullRows().described(2), tmp_path).read_text(encoding="utf-8")
    assert "No figure here was measured on a GPU" in text
    assert "peak_reserved_bytes +250" in text
    assert "`qbench validate --null` repeats it: 2 of the grid's 268 points" in text
    assert "--null --random 3 --seed 7` repeats it: 2 points" in NullRows(random=3, seed=7).described(2)


def test_points_outside_the_grid_are_drawn_by_a_seed() -> None:
    rows = random_rows(40, 1)
    assert rows == random_rows(40, 1) != random_rows(40, 2)
    grid = grid_rows()
    assert not {row.seq_len for row in rows} & {row.seq_len for row in grid}
    assert not {row.r for row in rows} & {row.r for row in grid}
    assert all(row.point.lora.r == row.r for row in rows)
    assert len({row.model for row in rows}) > 20
