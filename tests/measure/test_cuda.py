"""The real step on a GPU, in a process of its own, beside its plan."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import FAMILIES, tiny_point, write_tiny_model

from qbench.catalog.gpus import find_gpu
from qbench.measure.environment import machine
from qbench.measure.executors.local import LocalExecutor
from qbench.measure.runner import measure
from qbench.measure.task import Task
from qbench.planner.plan import plan
from qbench.scenario.schema import MeasureSettings


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["bf16", "nf4-dq"])
def test_plan_and_measurement_meet(tmp_path: Path, precision: str) -> None:
    """Half a gigabyte of activations and logits, so that the workspaces of the libraries do not decide."""
    model = write_tiny_model(
        tmp_path / "model", FAMILIES["llama"], vocab_size=32_000, max_position_embeddings=4096
    )
    point = tiny_point(model, precision, seq_len=2048)
    task = Task(point=point, device="cuda", settings=MeasureSettings(warmup_steps=2, steps=3), repeat=0)
    measured = measure(task, LocalExecutor(), "test")
    assert measured.outcome == "ok", measured.detail
    assert set(measured.detail["phases"]) == {"load", "forward", "loss", "backward", "optimizer"}
    assert len(measured.metrics["step_time_s"]) == 3
    gpu = find_gpu(str(machine("cuda")["device_name"]))
    planned = plan(point, "cuda", [gpu]).metrics["peak_allocated_bytes"]
    assert planned == pytest.approx(measured.metrics["peak_allocated_bytes"], rel=0.01)
