"""Hours of a job: steps, evaluations at their interval, checkpoints at theirs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qbench.planner.job import Job, job_time
from qbench.records.fits import Fit
from qbench.scenario.distributed import DistributedSettings
from qbench.scenario.schema import Point, TrainSettings

POINT = Point(
    model="HuggingFaceTB/SmolLM2-135M",
    train=TrainSettings(per_device_train_batch_size=2, seq_len=500, gradient_accumulation_steps=4),
)
"""4,000 tokens a step."""
FIT = Fit(
    gpu="A card",
    fits=True,
    verdict="fits",
    step_time_s=2.0,
    usd_per_hour=3.0,
    time={
        "parts_s": {"matmul": 1.2, "recompute": 0.4, "optimizer": 0.4},
        "bound": "compute",
        "rates": "given",
        "range_s": [1.0, 4.0],
    },
)


def test_steps_alone_take_their_time() -> None:
    # 4M tokens are 1,000 steps of 2 s; 1 to 4 s at the ends.
    found = job_time(Job(tokens=4_000_000), POINT, FIT, 1e9)
    assert found is not None
    assert found.hours == pytest.approx(2000 / 3600)
    assert found.range_hours == pytest.approx((1000 / 3600, 4000 / 3600))
    assert found.cost_usd == pytest.approx(3 * 2000 / 3600)
    assert (found.eval_hours, found.save_hours) == (0, 0)


def test_evaluations_are_forward_passes_and_checkpoints_go_to_the_disk() -> None:
    job = Job(tokens=4_000_000, eval_tokens=40_000, eval_steps=100, save_steps=500)
    found = job_time(job, POINT, FIT, 1e9)
    assert found is not None
    # Ten evaluations of ten steps' tokens; forward is a third of the 1.2 s that are no update and no repeat.
    assert found.eval_hours == pytest.approx(10 * 10 * 0.4 / 3600)
    # Two checkpoints of 12 GB at 1 GB/s.
    assert found.save_hours == pytest.approx(24 / 3600)
    assert found.hours == pytest.approx((2000 + 40 + 24) / 3600)
    # At the slow end steps and passes take twice as long, and the disk five times.
    assert found.range_hours[1] == pytest.approx((4000 + 80 + 120) / 3600)


def test_several_gpus_share_the_tokens() -> None:
    shared = POINT.model_copy(update={"distributed": DistributedSettings(strategy="ddp", gpus=4)})
    found = job_time(Job(tokens=4_000_000), shared, FIT, 1e9)
    assert found is not None
    assert found.hours == pytest.approx(250 * 2 / 3600)


def test_without_a_step_time_there_are_no_hours() -> None:
    assert job_time(Job(tokens=1), POINT, replace(FIT, step_time_s=None), 1e9) is None
