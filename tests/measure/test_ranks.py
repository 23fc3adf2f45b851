"""Points of several GPUs, measured by as many processes: equal to their plan, and ended together."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch

from qbench.measure.executors.local import LocalExecutor
from qbench.measure.ranks import run_ranks
from qbench.measure.runner import measure
from qbench.measure.task import Measurement, Task
from qbench.planner.plan import plan
from qbench.scenario.expand import point_from
from qbench.scenario.schema import MeasureSettings
from tests.tiny import FAMILIES, write_tiny_model


def test_a_measured_point_of_two_gpus_equals_its_plan(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "llama", FAMILIES["llama"], num_hidden_layers=6)
    point = point_from(
        {"model": model},
        {"seq_len": 32, "r": 3, "lora_dropout": 0.0, "strategy": "fsdp2", "gpus": 2, "recipe": "trainer"},
    )
    settings = MeasureSettings(warmup_steps=1, steps=2, timeout_s=600)
    task = Task(point=point, device="cpu", settings=settings, repeat=0)
    measured, planned = measure(task, LocalExecutor(), "test"), plan(point, "cpu")
    assert measured.outcome == "ok", measured.error_line
    # gloo's threads hold a buffer a moment longer now and then.
    assert measured.peak_allocated_bytes is not None
    assert planned.peak_allocated_bytes is not None
    assert 0 <= measured.peak_allocated_bytes / planned.peak_allocated_bytes - 1 < 0.2
    # Matrices of three rows are cut into two rows and one, and one of padding that no GPU counts.
    assert [each["static_bytes"] for each in measured.ranks] == [
        each["static_bytes"] for each in planned.ranks
    ]
    times, speeds = measured.metrics["step_time_s"], measured.metrics["tokens_per_s"]
    assert isinstance(times, list)
    assert isinstance(speeds, list)
    assert times[0] is not None
    assert speeds[0] == 2 * point.tokens_per_step / times[0]


def _alive(process_id: int) -> bool:
    return os.path.exists(f"/proc/{process_id}")


def test_a_killed_rank_ends_the_others_and_is_the_points_outcome(tmp_path: Path) -> None:
    def work(rank: int) -> Measurement:
        (tmp_path / str(rank)).write_text(str(os.getpid()), encoding="utf-8")
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
        return Measurement(outcome="ok")

    start = time.monotonic()
    first, second, third = run_ranks(work, 3)
    assert time.monotonic() - start < 300
    assert second.outcome == "crashed"
    assert second.detail["error"] == "the worker was ended by SIGKILL"
    assert first == third
    assert first.detail["error"] == "ended because another rank had failed"
    ids = [int(file.read_text("utf-8")) for file in tmp_path.iterdir()]
    assert ids
    assert not any(map(_alive, ids))


def test_a_rank_that_runs_out_of_memory_says_so(tmp_path: Path) -> None:
    def work(rank: int) -> Measurement:
        if rank == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        time.sleep(600)
        return Measurement(outcome="ok")

    done = run_ranks(work, 2)
    assert [each.outcome for each in done] == ["error", "oom"]
    oom = done[1].oom
    assert oom is not None
    assert oom["requested_bytes"] == 2 * 2**30
