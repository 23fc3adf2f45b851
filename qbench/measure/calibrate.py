"""Time this device's kernels and the host's work for them, so that steps on it can be planned."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from qbench.measure.environment import machine
from qbench.measure.micro_kernels import MicroKernel, cost_of, kernels
from qbench.measure.stopwatch import LEAST_RUNS, seconds_of
from qbench.memory.history.recording import record_steps, without_gc
from qbench.memory.kernels.replacements import kernels_of
from qbench.memory.work.log import CostLog
from qbench.records.calibration import Calibration, KernelTime
from qbench.records.software import library_versions
from qbench.scenario.schema import Device, LoraSettings, Point, TrainSettings
from qbench.step.training_step import TrainingStep, build_step

DTYPES = {
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}
ROUNDS = 3
SAME_SHARE = 0.03
"""Two rounds that differ by no more than this share of the time agree."""
HOST_STEPS = 12
"""Steps of a tiny model that tell what the host does for an operator; the first few warm up."""


def calibrate(device: Device, on_round: Callable[[int], None] = lambda number: None) -> Calibration:
    """Return how fast the device is; takes about a minute, on an idle machine.

    On the CPU it speaks for the threads that torch has now, on CUDA for the card that the caller has pinned
    before CUDA started (`nvml.pin_device`). `on_round` hears of each round over all kernels.
    """
    found = _kernel_times(device, on_round)
    return Calibration(
        device=device,
        device_name=str(machine(device)["device_name"]),
        num_threads=torch.get_num_threads() if device == "cpu" else None,
        versions=library_versions(),
        dispatch_s=host_seconds(device),
        kernels=found,
    )


def _kernel_times(device: Device, on_round: Callable[[int], None]) -> list[KernelTime]:
    """Return the shortest of what each kernel took in several rounds, which are some twenty seconds apart.

    What else runs on a machine only ever adds time, and does so for a second or more at a stretch: a kernel
    that took as long in two rounds was not disturbed, and is not timed in a third.
    """
    best: list[KernelTime] = []
    settled: set[int] = set()
    with torch.no_grad(), without_gc():
        for number in range(ROUNDS):
            on_round(number)
            every = (kernel for dtype in DTYPES[device] for kernel in kernels(device, dtype))
            for index, kernel in enumerate(every):
                if number == 0:
                    best.append(_kernel_time(kernel, device))
                elif index not in settled:
                    again, before = _seconds(kernel, device, least_runs=1), best[index].seconds
                    best[index] = replace(best[index], seconds=min(again, before))
                    if abs(again - before) <= SAME_SHARE * before:
                        settled.add(index)
    return best


def _kernel_time(kernel: MicroKernel, device: Device) -> KernelTime:
    cost = cost_of(kernel)
    return KernelTime(
        op=cost.op,
        kind=cost.kind,
        dtype=cost.dtype,
        flops=cost.flops,
        num_bytes=cost.num_bytes,
        shape=cost.shape,
        layout=cost.layout,
        seconds=_seconds(kernel, device, LEAST_RUNS),
    )


def _seconds(kernel: MicroKernel, device: Device, least_runs: int) -> float:
    seconds = seconds_of(kernel.runs, device, keeps=kernel.keeps, least_runs=least_runs)
    empty = 0.0 if kernel.empty is None else seconds_of([kernel.empty], device, budget_s=0.001)
    # What is as short as noise still takes some time.
    return max(seconds - empty, seconds / 100)


def host_seconds(device: Device) -> dict[str, float]:
    """Return the host's seconds for one operator of a training step, by phase.

    They are those of a step whose tensors are so small that nothing else takes time: Python of the model's
    modules and of peft, torch's dispatcher, autograd's engine.
    """
    with tempfile.TemporaryDirectory() as folder:
        point = _tiny_point(Path(folder))
        step = build_step(point, device)
        seconds = [_phase_seconds(step, device) for _ in range(HOST_STEPS)][HOST_STEPS // 3 :]
        counts = _operators(point, device)
    return {
        phase: statistics.median(step[phase] for step in seconds) / counts[phase]
        for phase in ("forward", "backward", "optimizer")
    }


def _tiny_point(folder: Path) -> Point:
    from transformers import LlamaConfig

    LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=64,
    ).save_pretrained(folder)
    train = TrainSettings(seq_len=8, gradient_checkpointing=False)
    return Point(model=str(folder), precision="fp32", lora=LoraSettings(r=4, lora_dropout=0), train=train)


def _phase_seconds(step: TrainingStep, device: Device) -> dict[str, float]:
    """Return the seconds of each phase of one step; the loss counts as forward."""
    marks: list[tuple[str, float]] = []
    step.on_phase = lambda phase: marks.append((phase, _now(device)))
    step.run()
    marks.append(("", _now(device)))
    seconds = dict.fromkeys(("forward", "backward", "optimizer"), 0.0)
    for (phase, start), (_, end) in itertools.pairwise(marks):
        seconds["forward" if phase == "loss" else phase] += end - start
    return seconds


def _now(device: Device) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _operators(point: Point, device: Device) -> dict[str, float]:
    """Return the operators of a step by phase, counted as a plan counts them."""
    log = CostLog()
    with kernels_of(device):
        step: Any = build_step(point, "meta", kernels=device)
        record_steps(step, {"meta"}, device, costs=log)
    counts = dict.fromkeys(("forward", "backward", "optimizer"), 0.0)
    for work, times in log.work():
        counts["forward" if work.phase == "loss" else work.phase] += times
    return counts
