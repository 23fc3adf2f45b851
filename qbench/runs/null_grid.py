"""The grid of points that is planned and run on null GPUs, and what both say of each.

Each point runs in a child of one process that has the libraries loaded and CUDA untouched. The child takes a
card of the catalog, makes two steps, and plans the same point.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from qbench.catalog.capabilities import context_size
from qbench.catalog.gpus import GpuSpec, find_gpu
from qbench.catalog.rows import catalog_rows, yes_or_no
from qbench.errors import StepError
from qbench.nullgpu.environment import card_environment
from qbench.scenario.schema import Point

FIGURES = ("static_bytes", "peak_allocated_bytes", "peak_reserved_bytes")

_STEPS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class GridRow:
    """One point of the grid and the card it runs on (catalog/data/null_grid.csv)."""

    gpu: str
    model: str
    precision: str
    recipe: str
    checkpointing: bool
    attn: str
    r: int
    lora_dropout: float
    seq_len: int
    batch: int
    optim: str
    autocast: str

    @property
    def point(self) -> Point:
        """The point that is planned and run."""
        train = {
            "per_device_train_batch_size": self.batch,
            "seq_len": self.seq_len,
            "gradient_checkpointing": self.checkpointing,
            "optim": self.optim,
            "recipe": self.recipe,
            "autocast": self.autocast,
            "attn_implementation": self.attn,
        }
        lora = {"r": self.r, "lora_alpha": 2 * self.r, "lora_dropout": self.lora_dropout}
        return Point.model_validate(
            {"model": self.model, "precision": self.precision, "lora": lora, "train": train}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a plan or a run on a null GPU says of a point; bytes by the names of metrics."""

    outcome: str
    """ok, oom, or refused."""
    figures: dict[str, int]
    """For ok those of `FIGURES`; for oom requested_bytes, by the segment, and free_bytes."""
    phase: str | None = None
    """Where memory ran out."""
    reason: str | None = None
    """Why the step was refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GridResult:
    """Both answers to one row."""

    row: GridRow
    planned: Answer
    on_null: Answer

    @property
    def differences(self) -> dict[str, int]:
        """Bytes on the null GPU less bytes planned, by figure; empty where the outcomes differ."""
        if self.planned.outcome != self.on_null.outcome:
            return {}
        return {name: value - self.planned.figures[name] for name, value in self.on_null.figures.items()}

    @property
    def is_equal(self) -> bool:
        """Say whether outcome, phase and all bytes are the same."""
        same = (self.planned.outcome, self.planned.phase) == (self.on_null.outcome, self.on_null.phase)
        return same and not any(self.differences.values())


def grid_rows() -> tuple[GridRow, ...]:
    """Return the rows of the grid."""
    numbers: dict[str, Callable[[str], object]] = dict.fromkeys(("r", "seq_len", "batch"), int)
    return catalog_rows("null_grid.csv", GridRow, checkpointing=yes_or_no, lora_dropout=float, **numbers)


def run_grid(rows: tuple[GridRow, ...]) -> Iterator[GridResult]:
    """Yield the result of each row. This process must have the shim and not have used CUDA."""
    _load_libraries()
    for row in rows:
        planned, on_null = _in_child(row)
        yield GridResult(row=row, planned=planned, on_null=on_null)


def _load_libraries() -> None:
    """Load once what every child needs, less what starts CUDA on import, which would settle the card."""
    import accelerate  # noqa: F401
    import pandas  # noqa: F401
    from transformers import AutoModelForCausalLM, PreTrainedModel  # noqa: F401

    gc.freeze()


def _in_child(row: GridRow) -> tuple[Answer, Answer]:
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiver)
        with os.fdopen(sender, "w") as answers:
            answers.write(json.dumps([asdict(answer) for answer in _answers(row)]))
        os._exit(0)
    os.close(sender)
    with os.fdopen(receiver) as answers:
        text = answers.read()
    os.waitpid(child, 0)
    if not text:
        crashed = Answer(outcome="crashed", figures={})
        return crashed, crashed
    planned, on_null = (Answer(**answer) for answer in json.loads(text))
    return planned, on_null


def _answers(row: GridRow) -> tuple[Answer, Answer]:
    gpu = find_gpu(row.gpu)
    os.environ.update(card_environment(gpu))
    on_null = _attempted(lambda: _measured(row.point))
    return _attempted(lambda: _planned(row.point, gpu)), on_null


def _attempted(work: Callable[[], Answer]) -> Answer:
    try:
        return work()
    except StepError as error:
        return Answer(outcome="refused", figures={}, reason=str(error))
    except RuntimeError as error:
        # What a library has no kernel for, it says by an error of this class.
        return Answer(outcome="refused", figures={}, reason=f"{type(error).__name__}: {error}"[:300])


def _measured(point: Point) -> Answer:
    """Return what the allocator counts over loading and two steps, or how it ran out of memory."""
    import torch

    from qbench.step.training_step import build_step

    torch.cuda.init()
    phase = "load"
    shortage: dict[str, int] = {}
    c_torch: Any = torch._C

    def on_shortage(device: int, requested: int, total: int, free: int) -> None:
        shortage.update(requested_bytes=requested, free_bytes=free)

    def on_phase(name: str) -> None:
        nonlocal phase
        phase = name

    c_torch._cuda_attach_out_of_memory_observer(on_shortage)
    try:
        step = build_step(point, "cuda")
        gc.collect()
        static_bytes = torch.cuda.memory_allocated()
        step.on_phase = on_phase
        gc.disable()
        for _ in range(_STEPS):
            step.run().item()
    except torch.OutOfMemoryError:
        return Answer(outcome="oom", figures=shortage, phase=phase)
    peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return Answer(outcome="ok", figures=dict(zip(FIGURES, (static_bytes, *peaks), strict=True)))


def _planned(point: Point, gpu: GpuSpec) -> Answer:
    """Return what the plan says of the same, the allocator replayed with what the context leaves."""
    from qbench.memory.allocator.blocks import segment_size
    from qbench.memory.allocator.caching import AllocatorConfig, replay
    from qbench.memory.history.ledger import emptied_at
    from qbench.planner.hardware import card_of
    from qbench.planner.trace import trace

    traced = trace(point, "cuda", card_of(gpu))
    assert gpu.compute_capability is not None
    limit = gpu.memory_bytes - context_size(gpu.compute_capability).most
    history = traced.ledger
    found = replay(history.events, AllocatorConfig(), limit, emptied_at(history.marks))
    if found.oom_at_event is not None:
        assert found.oom_requested_bytes is not None
        assert found.oom_free_bytes is not None
        phase = history.allocations[history.events[found.oom_at_event][0]].phase
        asked = segment_size(found.oom_requested_bytes)
        figures = {"requested_bytes": asked, "free_bytes": found.oom_free_bytes}
        return Answer(outcome="oom", figures=figures, phase=_phase_of_run(phase))
    peaks = found.stats.peak_allocated_bytes, found.stats.peak_reserved_bytes
    static_bytes = traced.memory.static_bytes
    return Answer(outcome="ok", figures=dict(zip(FIGURES, (static_bytes, *peaks), strict=True)))


def _phase_of_run(phase: str) -> str:
    """Return the phase in which a run would be; it does not tell apart what comes before the first step."""
    return "load" if phase in ("load", "prepare", "adapters", "build") else phase
