"""Time this device's kernels and the host's work for them, so that steps on it can be planned."""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from qbench.measure.environment import machine
from qbench.measure.host_load import busy_cpus_of_others, cpu_clock
from qbench.measure.micro_kernels import cost_of, kernels
from qbench.measure.stopwatch import cpu_seconds, seconds_of
from qbench.memory.history.recording import record_steps, without_gc
from qbench.memory.kernels.replacements import kernels_of
from qbench.memory.work.log import CostLog
from qbench.memory.work.op_costs import OpCost
from qbench.records.calibration import Calibration, KernelTime
from qbench.records.software import library_versions
from qbench.scenario.schema import Device, LoraSettings, Point, TrainSettings
from qbench.step.training_step import TrainingStep, build_step

DTYPES = {
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}
ROUNDS, LEAST_ROUNDS = 8, 4
"""Most and least rounds over all kernels, one after the other. The first warms up and does not count."""
BUDGET_S = 50.0
"""Seconds after which no further round begins that would end later, once there are LEAST_ROUNDS."""
HOST_STEPS = 60
"""Steps of a tiny model that tell what the host does for an operator; the first third warms up."""


def calibrate(device: Device, on_round: Callable[[int], None] = lambda number: None) -> Calibration:
    """Return how fast the device is; takes about a minute, on an idle machine.

    On the CPU it speaks for the threads that torch has now, on CUDA for the card that the caller has pinned
    before CUDA started (`nvml.pin_device`). `on_round` hears of each round over all kernels.
    """
    before = cpu_clock()
    with _on_one_core(device):
        dispatch_s = host_seconds(device)
        found = _kernel_times(device, on_round)
    return Calibration(
        device=device,
        device_name=str(machine(device)["device_name"]),
        num_threads=torch.get_num_threads() if device == "cpu" else None,
        versions=library_versions(),
        dispatch_s=dispatch_s,
        kernels=found,
        others_busy_cpus=busy_cpus_of_others(before, cpu_clock()),
    )


@contextlib.contextmanager
def _on_one_core(device: Device) -> Iterator[None]:
    """Keep this process on the last core that it may use, where torch has one thread and the system can.

    A process that moves between cores finds their caches cold.
    """
    if device != "cpu" or torch.get_num_threads() != 1 or not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _kernel_times(device: Device, on_round: Callable[[int], None]) -> list[KernelTime]:
    """Return the median of what each kernel took in the rounds, which are some ten seconds apart.

    What else runs on a machine does so for a second or more at a stretch: in one round of a kernel, not in
    most of them. Each round's figure is a median of its own.
    """
    costs: list[OpCost] = []
    rounds: list[list[float]] = []
    start = time.monotonic()
    with torch.no_grad(), without_gc():
        for number in range(ROUNDS):
            passed = time.monotonic() - start
            if number >= LEAST_ROUNDS and passed + passed / number > BUDGET_S:
                break
            on_round(number)
            rounds.append([])
            for kernel in (one for dtype in DTYPES[device] for one in kernels(device, dtype)):
                if number == 0:
                    costs.append(cost_of(kernel))
                took = seconds_of(kernel.runs, device, empty=kernel.empty, keeps=kernel.keeps)
                rounds[-1].append(took)
    counted = rounds[1:] or rounds
    return [
        _kernel_time(cost, statistics.median(seconds)) for cost, *seconds in zip(costs, *counted, strict=True)
    ]


def _kernel_time(cost: OpCost, seconds: float) -> KernelTime:
    return KernelTime(
        op=cost.op,
        kind=cost.kind,
        dtype=cost.dtype,
        flops=cost.flops,
        num_bytes=cost.num_bytes,
        shape=cost.shape,
        layout=cost.layout,
        seconds=seconds,
    )


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
    # On CUDA another thread does backward's work.
    clock = cpu_seconds() if device == "cpu" else time.perf_counter

    def mark(phase: str) -> None:
        if device == "cuda":
            torch.cuda.synchronize()
        marks.append((phase, clock()))

    step.on_phase = mark
    step.run()
    mark("")
    seconds = dict.fromkeys(("forward", "backward", "optimizer"), 0.0)
    for (phase, start), (_, end) in itertools.pairwise(marks):
        seconds["forward" if phase == "loss" else phase] += end - start
    return seconds


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
