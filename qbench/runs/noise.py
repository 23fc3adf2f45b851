"""Processes of the same code, one after the other, to see how far they differ."""

from __future__ import annotations

from collections.abc import Iterator

from qbench.measure.runner import Executor, measure
from qbench.measure.task import Task
from qbench.records.record import Record
from qbench.scenario.schema import Device, LoraSettings, MeasureSettings, Point, TrainSettings

POINT = Point(
    model="EleutherAI/pythia-14m",
    precision="nf4-dq",
    lora=LoraSettings(r=8),
    train=TrainSettings(seq_len=32, gradient_checkpointing=False),
)
"""Small, so that a machine's noise is known in a minute; larger points have less of it."""

SETTINGS = MeasureSettings(warmup_steps=1, steps=15, timeout_s=120)


def noise_records(
    device: Device,
    executor: Executor,
    *,
    point: Point = POINT,
    settings: MeasureSettings = SETTINGS,
    processes: int,
) -> Iterator[Record]:
    """Yield the record of each process as it ends; whatever becomes of one is its outcome."""
    for repeat in range(processes):
        task = Task(point=point, device=device, settings=settings, repeat=repeat)
        yield measure(task, executor, "noise")
