"""Many plans: in order, the same whether made here, in processes or before, and none lost to another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import FAMILIES, tiny_point, write_tiny_model

from qbench.catalog.gpus import find_gpu
from qbench.planner import plan as plan_module
from qbench.planner.plan import plan as plan_of
from qbench.records.plan_cache import PlanCache
from qbench.records.record import Record
from qbench.runs import plans as plans_module
from qbench.runs.plans import PlanFor, each_plan, plans
from qbench.scenario.schema import Point
from tests.runs import deaths


def same(one: Record, other: Record) -> bool:
    return (one.point, one.outcome, one.metrics, one.detail) == (
        other.point,
        other.outcome,
        other.metrics,
        other.detail,
    )


@pytest.fixture
def model(tmp_path: Path) -> str:
    return write_tiny_model(tmp_path / "model", FAMILIES["llama"])


def test_processes_plan_as_this_one_does(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [tiny_point(model, precision, {"r": r}) for precision in ("bf16", "nf4") for r in (2, 4)]
    points.insert(1, tiny_point(model, lora={"target_modules": ("no_such_layer",)}))
    here = plans(points, PlanFor())
    heard = []
    monkeypatch.setattr(plans_module, "POINTS_WORTH_PROCESSES", 2)
    monkeypatch.setattr(plans_module, "POINTS_PER_TASK", 2)
    there = plans(points, PlanFor(), on_plan=lambda index, record: heard.append(index))
    assert [record.outcome for record in here] == ["ok", "error", "ok", "ok", "ok"]
    assert all(map(same, here, there))
    assert sorted(heard) == [0, 1, 2, 3, 4]


def test_what_was_planned_is_not_planned_again(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, point = PlanCache(tmp_path / "cache"), tiny_point(model)
    (first,) = plans([point], PlanFor(), cache)
    monkeypatch.setattr(plans_module, "plan_or_error", None)
    (again,) = plans([point], PlanFor(), cache)
    assert replace(again, created_at=first.created_at) == first
    assert first.environment["inputs"].keys() == {"config.json"}


def test_a_plan_that_ends_its_process_loses_no_other(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans_module, "_plan_task", deaths.dies_of_rank_3)
    monkeypatch.setattr(plans_module, "POINTS_PER_TASK", 2)
    points = [tiny_point(model, lora={"r": r}) for r in (1, 2, 3, 4, 5)]
    made = dict(each_plan(points, PlanFor(), apart=True))
    assert [made[index].outcome for index in range(5)] == ["ok", "ok", "crashed", "ok", "ok"]
    assert made[2].point == points[2]


def test_what_a_library_raises_is_the_outcome_of_its_point(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [tiny_point(model, lora={"r": r}) for r in (2, 4)]

    def plan(point: Point, *arguments: Any, **settings: Any) -> Record:
        if point == points[0]:
            raise ZeroDivisionError("by zero")
        return plan_of(point, *arguments, **settings)

    monkeypatch.setattr(plan_module, "plan", plan)
    failed, planned = plans(points, PlanFor())
    assert (failed.outcome, failed.detail["error"]) == ("error", "ZeroDivisionError: by zero")
    assert planned.outcome == "ok"


@pytest.mark.parametrize(
    "changed",
    [
        PlanFor(device="cpu"),
        PlanFor(gpus=(find_gpu("RTX 4090"),)),
        PlanFor(alloc_conf="max_split_size_mb:64"),
    ],
    ids=["device", "gpu", "allocator"],
)
def test_other_settings_are_planned_anew(model: str, tmp_path: Path, changed: PlanFor) -> None:
    cache, point = PlanCache(tmp_path / "cache"), tiny_point(model)
    plans([point], PlanFor(), cache)
    (again,) = plans([point], changed, cache)
    assert same(again, plans([point], changed)[0])
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 2


def test_a_changed_config_is_planned_anew(model: str, tmp_path: Path) -> None:
    cache, point = PlanCache(tmp_path / "cache"), tiny_point(model)
    (before,) = plans([point], PlanFor(), cache)
    write_tiny_model(Path(model), FAMILIES["llama"], num_hidden_layers=3)
    (after,) = plans([point], PlanFor(), cache)
    assert after.metrics["total_params"] > before.metrics["total_params"]


def test_a_plan_that_could_not_be_made_says_why_and_is_not_kept(model: str, tmp_path: Path) -> None:
    point = tiny_point(model, lora={"target_modules": ("no_such_layer",)})
    (record,) = plans([point], PlanFor(), PlanCache(tmp_path / "cache"))
    assert (record.kind, record.outcome, record.device) == ("plan", "error", "cuda")
    assert "no_such_layer" in record.detail["error"]
    assert not list((tmp_path / "cache").rglob("*.json"))
