"""Measure a point that several processes train together: one a GPU, forked from this one, ended together."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from qbench.catalog.gpus import find_gpu
from qbench.errors import MeasureError
from qbench.measure import nvml
from qbench.measure.failures import ended_by, failure, kernel_oom_kills
from qbench.measure.task import Measurement, Task, measurement_from_json
from qbench.nullgpu.environment import AddressOrder
from qbench.records.metrics import scalar
from qbench.records.parts import Metrics
from qbench.records.ranks import RankMemory
from qbench.records.record import Outcome

_PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""
END_GRACE_S = 2.0
"""How long the others may say what became of them once a rank has failed; they wait for it in vain."""
CHUNK_BYTES = 1 << 16

_WORST: tuple[Outcome, ...] = ("oom", "crashed", "timeout", "error")
"""Which rank's failure is the point's: the others of a group fail because of it."""
_TIMES = ("step_time_s", "host_time_s")

Work = Callable[[int], Measurement]
"""What one rank does, in a process of its own; it is given its number."""


def measure_ranks(task: Task) -> Measurement:
    """Return the measurement of a point of several GPUs: the largest rank's, with the memory of each.

    Raises MeasureError where there are fewer GPUs. This process must not have used CUDA before.
    """
    num_ranks = task.point.num_gpus
    if task.device == "cpu":
        return _group(task, lambda folder, rank: _on_cpu(task, folder, rank))
    if task.device == "cuda":
        visible = nvml.visible_devices(num_ranks)
        return _group(task, lambda folder, rank: _on_gpu(task, folder, rank, visible[rank]))
    from qbench.measure.null import steps_once, with_reserved_range

    # One group after the other: their cards' memory would not add up, but their processes would.
    up = _group(task, lambda folder, rank: _on_null(task, folder, rank, "up"))
    down = _group(task, lambda folder, rank: _on_null(steps_once(task), folder, rank, "down"))
    return with_reserved_range(up, down)


def _group(task: Task, work: Callable[[Path, int], Measurement]) -> Measurement:
    with tempfile.TemporaryDirectory(prefix="qbench-ranks-") as folder:
        done = run_ranks(lambda rank: work(Path(folder), rank), task.point.num_gpus)
    failed = [(rank, each) for rank, each in enumerate(done) if each.outcome != "ok"]
    if failed:
        rank, worst = min(failed, key=lambda pair: _WORST.index(pair[1].outcome))
        error = f"rank {rank}: {worst.error or worst.outcome}"
        return replace(worst, detail={**worst.detail, "error": error})
    return _joined(task, done)


def _on_cpu(task: Task, folder: Path, rank: int) -> Measurement:
    import torch

    from qbench.distributed.group import join_group
    from qbench.distributed.session import real_session
    from qbench.measure.cpu import measure_cpu

    os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed would take a GPU that is hidden for the device.
    torch.set_num_threads(max(1, torch.get_num_threads() // task.point.num_gpus))
    join_group("gloo", folder / "store", rank, task.point.num_gpus)
    with real_session(task.point) as session:
        return _in_phase(lambda on_phase: measure_cpu(task, on_phase, session))


def _on_gpu(task: Task, folder: Path, rank: int, visible: str) -> Measurement:
    from qbench.distributed.group import join_group
    from qbench.distributed.session import real_session
    from qbench.measure.cuda import measure_cuda

    nvml.pin_device_of(visible)
    join_group("nccl", folder / "store", rank, task.point.num_gpus)
    with real_session(task.point) as session:
        return _in_phase(lambda on_phase: measure_cuda(task, on_phase, session))


def _on_null(task: Task, folder: Path, rank: int, order: AddressOrder) -> Measurement:
    from qbench.measure.null import measure_on_card, show_card

    gpu = find_gpu(str(task.gpu))
    show_card(gpu, order, folder / "card", task.point.num_gpus)
    os.environ["CUDA_VISIBLE_DEVICES"] = str(rank)
    from qbench.distributed.group import join_group
    from qbench.distributed.session import real_session

    join_group("nccl", folder / "store", rank, task.point.num_gpus)
    with real_session(task.point) as session:
        return _in_phase(lambda on_phase: measure_on_card(task, gpu, on_phase, session))


def _in_phase(work: Callable[[Callable[[str], None]], Measurement]) -> Measurement:
    phases = ["load"]
    try:
        return work(phases.append)
    except Exception as error:
        # The boundary of a rank: whatever a library raises is the group's outcome.
        return failure(error, phases[-1])


def _joined(task: Task, done: Sequence[Measurement]) -> Measurement:
    """Return the measurement of the largest rank; a step takes as long as on the slowest one."""
    largest = max(done, key=_size)
    metrics: dict[str, object] = dict(largest.metrics)
    of_ranks: list[dict[str, object]] = [dict(each.metrics) for each in done]
    for name in _TIMES:
        by_rank = [cast("list[float]", each[name]) for each in of_ranks if name in each]
        if by_rank:
            metrics[name] = [max(of_step) for of_step in zip(*by_rank, strict=True)]
    if "tokens_per_s" in metrics:
        tokens = task.point.tokens_per_step * task.point.num_gpus
        metrics["tokens_per_s"] = [
            tokens / seconds for seconds in cast("list[float]", metrics["step_time_s"])
        ]
    ranks = [_memory(rank, each) for rank, each in enumerate(of_ranks)]
    return replace(largest, metrics=cast(Metrics, metrics), detail={**largest.detail, "ranks": ranks})


def _size(done: Measurement) -> tuple[float, float]:
    return scalar(done, "peak_reserved_bytes") or 0, scalar(done, "peak_allocated_bytes") or 0


def _memory(rank: int, metrics: dict[str, object]) -> RankMemory:
    names = ("static_bytes", "peak_allocated_bytes", "peak_reserved_bytes")
    return cast(RankMemory, {"rank": rank, **{name: metrics.get(name) for name in names}})


@dataclass(slots=True)
class _Rank:
    process_id: int
    answers: int
    """The reading end of its pipe."""
    text: bytes = b""
    is_open: bool = True
    exit_code: int | None = None

    @property
    def has_answered(self) -> bool:
        """Whether the whole answer is there."""
        return self.text.endswith(b"\n")


def run_ranks(work: Work, num_ranks: int) -> list[Measurement]:
    """Return what became of each rank's work. Once one has failed, the others are ended."""
    kills = kernel_oom_kills()
    ranks: list[_Rank] = []
    try:
        for number in range(num_ranks):
            ranks.append(_forked(work, number, ranks))
        _wait(ranks)
    finally:
        is_whole = len(ranks) == num_ranks and not any(map(_has_failed, ranks))
        for rank in ranks:
            _end(rank, kill=rank.is_open or not is_whole)
    kills = kernel_oom_kills() - kills
    return [_became(rank, kills) for rank in ranks]


def _forked(work: Work, number: int, others: Sequence[_Rank]) -> _Rank:
    receiver, sender = os.pipe()
    child = os.fork()
    if child:
        os.close(sender)
        return _Rank(child, receiver)
    try:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for end in (receiver, *(other.answers for other in others)):
            os.close(end)
        answer = _answer(work, number)
        with os.fdopen(sender, "wb") as stream:
            stream.write(answer.to_json().encode() + b"\n")
        if answer.outcome == "ok":
            _leave_together()
    finally:  # Whatever happens, this copy of the process never goes on with its caller's work.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _answer(work: Work, number: int) -> Measurement:
    try:
        return work(number)
    except Exception as error:
        return failure(error)


def _leave_together() -> None:
    """Wait for the others, who may still need what this rank sends."""
    import torch.distributed as dist

    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.barrier()


def _wait(ranks: Sequence[_Rank]) -> None:
    """Read the answers until all are there, or until END_GRACE_S after a rank has failed."""
    deadline: float | None = None
    while open_ranks := [rank for rank in ranks if rank.is_open]:
        rest = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([rank.answers for rank in open_ranks], [], [], rest)
        if not ready:
            return
        for rank in open_ranks:
            if rank.answers in ready:
                chunk = os.read(rank.answers, CHUNK_BYTES)
                rank.text += chunk
                rank.is_open = bool(chunk) and not rank.has_answered
        if deadline is None and any(map(_has_failed, ranks)):
            deadline = time.monotonic() + END_GRACE_S


def _has_failed(rank: _Rank) -> bool:
    return not rank.is_open and (not rank.has_answered or _parsed(rank).outcome != "ok")


def _end(rank: _Rank, kill: bool) -> None:
    """Leave no process behind. One that has ended by itself is still there to be asked for its exit code."""
    if kill:
        os.kill(rank.process_id, signal.SIGKILL)
    _, status = os.waitpid(rank.process_id, 0)
    rank.exit_code = os.waitstatus_to_exitcode(status)
    os.close(rank.answers)


def _parsed(rank: _Rank) -> Measurement:
    try:
        return measurement_from_json(rank.text)
    except MeasureError as error:
        return Measurement(outcome="crashed", detail={"error": str(error)})


def _became(rank: _Rank, oom_kills: int) -> Measurement:
    if rank.has_answered:
        return _parsed(rank)
    if rank.is_open:
        return Measurement(outcome="error", detail={"error": "ended because another rank had failed"})
    return ended_by(rank.exit_code or 0, oom_kills)
