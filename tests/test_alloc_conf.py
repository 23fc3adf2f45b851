"""The allocator's settings of a process reach the plan that stands beside its measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_point, write_tiny_model

from qbench.runs.run import plan_points, plan_settings
from qbench.scenario.schema import Device, Point


def detail_of(point: Point, device: Device) -> dict[str, Any]:
    ((_, record),) = plan_points([point], plan_settings(device, ()))
    return record.detail


def test_a_plan_beside_a_measurement_has_the_allocator_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True,backend:native")
    point = tiny_point(write_tiny_model(tmp_path / "tiny", "HuggingFaceTB/SmolLM2-135M"))
    detail = detail_of(point, "cuda")
    assert detail["allocator"]["expandable_segments"] is True
    assert "allocator settings not modelled: backend:native" in detail["caveats"]
    assert "allocator" not in detail_of(point, "cpu")
