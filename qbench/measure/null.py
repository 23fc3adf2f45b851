"""Measure a point on a null GPU: the CUDA engine, in a process that has the shim, for a card of the catalog.

What a GPU alone can tell is left out: times, speed, power, losses, and the size of the CUDA context, which
here is the plan's own. What remains of the timed steps is how long the host needs to issue one. Reserved
memory can depend on which free addresses the driver hands out first, so the measurement is made in both
orders, in two processes at a time; the metrics are those of the lowest address first. The other one takes
fewer steps, so that it has ended when the host's time is taken.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from qbench.catalog.capabilities import context_size
from qbench.catalog.gpus import GpuSpec, find_gpu
from qbench.errors import MeasureError, StepError
from qbench.measure.environment import environment
from qbench.measure.failures import attempt
from qbench.measure.task import Measurement, Phase, Task, measurement_from_json
from qbench.nullgpu import launcher
from qbench.nullgpu.environment import AddressOrder, card_environment, card_here
from qbench.quick_imports import quick_imports
from qbench.records.metrics import scalar
from qbench.records.parts import Detail, Metrics
from qbench.records.record import Record

if TYPE_CHECKING:
    from qbench.distributed.session import Session

GPU_METRICS = ("step_time_s", "tokens_per_s", "loss", "text_loss", "weight_error", "device_bytes")
"""Metrics of the CUDA engine that mean nothing on a card that computes nothing and has no context."""
GPU_DETAIL = (
    *("window_s", "enqueue_s", "counters", "energy_j_per_step", "sampled"),
    *("warmup_step_time_s", "rehearsal_time_s", "warmup_steady", "load_time_s"),
    *("loss_before", "loss_after", "quality"),
    *("context_bytes", "reconciliation_bytes", "device_used_bytes"),
)
FINDINGS = ("allocator_retries", "foreign_processes", "git_dirty")
"""What was looked at and is true of the null GPU, too."""


def measure_null(task: Task, on_phase: Phase) -> Measurement:
    """Return the measurement of one point in this process, which must not have used CUDA before.

    `on_phase` hears of each phase as it begins. Raises torch.OutOfMemoryError as on a GPU, StepError where
    this torch has no kernels for the card, MeasureError in a process without the shim.
    """
    if not launcher.is_loaded():
        raise MeasureError("this process has no null GPU; start it through `qbench run --device null`")
    _check_images(task)
    gpu = find_gpu(str(task.gpu))
    with tempfile.TemporaryDirectory(prefix="qbench-null-") as folder:

        def measured(task: Task, order: AddressOrder, on_phase: Phase) -> Measurement:
            show_card(gpu, order, Path(folder, order))
            return measure_on_card(task, gpu, on_phase)

        of_down = _in_child(lambda: measured(steps_once(task), "down", lambda phase: None))
        try:
            up = measured(task, "up", on_phase)
        finally:
            down = of_down()
    return with_reserved_range(up, down)


def _check_images(task: Task) -> None:
    """Refuse images: models read token ids and grids back from the card, which computes none here."""
    vision = task.point.vision
    if vision is not None and vision.num_images:
        raise StepError(
            "training on images is not measured on a null GPU, which computes no values to branch on; run it "
            "with --device cpu or on a GPU, or set num_images: 0"
        )


def steps_once(task: Task) -> Task:
    """Return a task with one timed step: memory repeats, which is enough where times are not kept."""
    return replace(task, settings=task.settings.model_copy(update={"steps": 1}))


def with_reserved_range(up: Measurement, down: Measurement) -> Measurement:
    """Return the measurement with the lowest addresses first, and what both orders reserved."""
    ends = [int(scalar(found, "peak_reserved_bytes") or 0) for found in (up, down) if found.outcome == "ok"]
    detail: Detail = {**up.detail, "reserved_range_bytes": [min(ends), max(ends)]}
    if down.outcome != up.outcome:
        detail["caveats"] = [f"with the highest addresses handed out first it ends in {down.outcome}"]
    return Measurement(outcome=up.outcome, metrics=up.metrics, detail=detail)


def show_card(gpu: GpuSpec, order: AddressOrder, state: Path, count: int = 1) -> None:
    """Give this process a card, or so many; others that have the same `state` know of it, as by NVML."""
    context = None if count == 1 else context_size(gpu.compute_capability or (0, 0), count).most
    card = card_environment(gpu, order=order, count=count, context_bytes=context)
    os.environ.update(card | {"NULLGPU_STATE": str(state)})


def measure_on_card(task: Task, gpu: GpuSpec, on_phase: Phase, session: Session | None = None) -> Measurement:
    """Return the measurement on the card that this process shows CUDA; arguments are `measure_cuda`'s."""
    # These start CUDA on import, which reads the card.
    with quick_imports():
        from qbench.measure.cuda import measure_cuda
    import torch

    torch.set_num_threads(1)  # Adapters are filled on the host: small tensors, for which threads wait.
    _check_kernels(gpu)
    return on_null(measure_cuda(task, on_phase, session))


def _check_kernels(gpu: GpuSpec) -> None:
    """Refuse a card for which this torch has no kernels: a launch of none would succeed here, not there."""
    import torch

    built = sorted(int(name[3:]) for name in torch.cuda.get_arch_list() if name.startswith("sm_"))
    major, minor = gpu.compute_capability or (0, 0)
    # Code for one capability runs on later ones with the same major number (CUDA C++ Programming Guide).
    if not any(arch // 10 == major and arch % 10 <= minor for arch in built):
        raise StepError(
            f"torch {torch.__version__} has no kernels for {gpu.name}, compute capability {major}.{minor}; "
            f"it has them for {', '.join(map(str, built))}"
        )


def on_null(done: Measurement) -> Measurement:
    """Return what the CUDA engine measured less what a null GPU cannot tell."""
    metrics = cast(Metrics, {name: value for name, value in done.metrics.items() if name not in GPU_METRICS})
    if "step_time_s" in done.metrics:
        # Events hold the host's clock, and nothing waits for a GPU.
        metrics["host_time_s"] = done.metrics["step_time_s"]
    detail = cast(Detail, {name: value for name, value in done.detail.items() if name not in GPU_DETAIL})
    detail["validity"] = [found for found in detail.get("validity") or () if found["name"] in FINDINGS]
    return Measurement(outcome=done.outcome, metrics=metrics, detail=detail, environment=done.environment)


def as_null(record: Record) -> Record:
    """Return what a record of CUDA's device says where CUDA in this process is the null GPU."""
    done = on_null(Measurement(outcome=record.outcome, metrics=record.metrics, detail=record.detail))
    where = environment("null", card_here())
    return replace(record, metrics=done.metrics, detail=done.detail, environment=where)


def _in_child(work: Callable[[], Measurement]) -> Callable[[], Measurement]:
    """Begin work in a child of this process, which still has not used CUDA; return what waits for its end."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(receiver)
            with os.fdopen(sender, "w") as answer:
                answer.write(attempt(work).to_json())
        finally:  # Whatever happens, this copy of the process never goes on with its caller's work.
            os._exit(0)
    os.close(sender)

    def ended() -> Measurement:
        with os.fdopen(receiver) as answer:
            text = answer.read()
        os.waitpid(child, 0)
        try:
            return measurement_from_json(text)
        except MeasureError:
            return Measurement(outcome="crashed")

    return ended
