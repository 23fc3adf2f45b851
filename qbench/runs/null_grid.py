"""The grid of points that is planned and run on null GPUs, and what both say of each.

Each point runs in a child of one process that has the libraries loaded and CUDA untouched. The child takes a
card of the catalog, makes two steps, and plans the same point.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from qbench.catalog.capabilities import context_size
from qbench.catalog.gpus import GpuSpec, find_gpu, gpus
from qbench.catalog.models import models
from qbench.catalog.rows import catalog_rows, yes_or_no
from qbench.errors import StepError
from qbench.measure.null_steps import FIGURES, STEPS, measure_steps, steps_environment
from qbench.measure.runner import record_of
from qbench.measure.task import Measurement, Task, measurement_from_json
from qbench.nullgpu.environment import card_environment
from qbench.records.facts import Facts, facts, facts_of
from qbench.records.metrics import scalar
from qbench.records.record import Record, run_id_of
from qbench.records.store import each_record, open_store
from qbench.scenario.schema import MeasureSettings, Point

_MOST_PARAMS = 9_000_000_000
"""Of a model that is drawn, so that a point takes seconds."""

_BYTES_OF_WEIGHT = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.0, "nf4": 0.5, "nf4-dq": 0.5}


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

    @property
    def task(self) -> Task:
        """The measurement of the point."""
        settings = MeasureSettings(warmup_steps=0, steps=STEPS)
        return Task(point=self.point, device="null", settings=settings, repeat=0, gpu=self.gpu)


@dataclass(frozen=True, slots=True, kw_only=True)
class GridOutcome:
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
    planned: GridOutcome
    on_null: GridOutcome

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


def grid_rows(every: int = 1) -> tuple[GridRow, ...]:
    """Return the rows of the grid, or one out of so many."""
    numbers: dict[str, Callable[[str], object]] = dict.fromkeys(("r", "seq_len", "batch"), int)
    rows = catalog_rows("null_grid.csv", GridRow, checkpointing=yes_or_no, lora_dropout=float, **numbers)
    return rows[::every]


def random_rows(count: int, seed: int) -> tuple[GridRow, ...]:
    """Return points that are not in the grid: cards, models and settings drawn with a seed.

    Lengths, batches and ranks are not those of the grid. Weights take at most half of the card.
    """
    draw = random.Random(seed)
    cards = [gpu for gpu in gpus() if (gpu.compute_capability or (0, 0)) >= (7, 5) and gpu.multiprocessors]
    small = [model for model in models() if model.num_params < _MOST_PARAMS]
    rows: list[GridRow] = []
    while len(rows) < count:
        gpu, model = draw.choice(cards), draw.choice(small)
        recipe = draw.choice(("plain", "peft", "trainer", "trl"))
        half = "fp16" if (gpu.compute_capability or (0, 0)) < (8, 0) else "bf16"
        row = GridRow(
            gpu=gpu.name,
            model=model.hub_id,
            precision=draw.choice(("fp32", half, "nf4", "nf4-dq", "int8")),
            recipe=recipe,
            checkpointing=draw.random() < 0.5,
            attn="auto",
            r=draw.choice((4, 12, 24, 48, 128)),
            lora_dropout=0 if model.expert_params else draw.choice((0, 0.1)),
            seq_len=draw.choice((300, 777, 1023, 1500, 3000)),
            batch=draw.choice((1, 3, 5)),
            optim=draw.choice(("adamw_torch", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "sgd")),
            autocast=half if recipe in ("trainer", "trl") else "none",
        )
        if 2 * model.num_params * _BYTES_OF_WEIGHT[row.precision] < gpu.memory_bytes:
            rows.append(row)
    return tuple(rows)


def run_grid(rows: Sequence[GridRow], folder: Path) -> Iterator[GridResult]:
    """Yield the result of each row. This process must have the shim and not have used CUDA.

    What is measured is kept in the run folder, and not measured again there by the same code, libraries and
    settings; plans are always made anew. Raises RecordError when the folder cannot be read or written.
    """
    _load_libraries()
    run_id = run_id_of("null-grid")
    with open_store(folder) as store:
        kept = _kept(folder)
        for row in rows:
            record = kept.get((row.point.point_id, row.gpu))
            planned, measured = _in_child(row, has_measurement=record is not None)
            if record is None:
                record = record_of(row.task, measured or Measurement(outcome="crashed"), run_id)
                store.append(record)
            yield GridResult(row=row, planned=planned, on_null=_answer(record))


def _kept(folder: Path) -> dict[tuple[str, str | None], Record]:
    """Return by point and card the measurements in a folder that still count."""
    return {
        (record.point_id, record.card): record
        for record in each_record(folder)
        if record.outcome != "crashed"
        and record.card is not None
        and facts_of(record).standing == _facts(record.card).standing
    }


@functools.cache
def _facts(card: str) -> Facts:
    """Return what a measurement made now would stand on."""
    return facts("measurement", steps_environment(card), {"protocol": {"warmup_steps": 0, "steps": STEPS}})


def _load_libraries() -> None:
    """Load once what every child needs, less what starts CUDA on import, which would settle the card."""
    import accelerate  # noqa: F401
    import pandas  # noqa: F401
    from transformers import AutoModelForCausalLM, PreTrainedModel  # noqa: F401

    gc.freeze()


def _in_child(row: GridRow, *, has_measurement: bool) -> tuple[GridOutcome, Measurement | None]:
    """Return the plan of a row and, unless there is one, its measurement; None where the child crashed."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(receiver)
            with os.fdopen(sender, "w") as answers:
                gpu = find_gpu(row.gpu)
                os.environ.update(card_environment(gpu))
                measured = "" if has_measurement else measure_steps(row.point, row.gpu).to_json()
                answers.write(f"{measured}\n{json.dumps(asdict(_attempted(row.point, gpu)))}\n")
        finally:  # Whatever happens, this copy of the process never goes on with its caller's work.
            os._exit(0)
    os.close(sender)
    with os.fdopen(receiver) as answers:
        lines = answers.read().splitlines()
    os.waitpid(child, 0)
    if len(lines) != 2:
        return GridOutcome(outcome="crashed", figures={}), None
    return GridOutcome(**json.loads(lines[1])), measurement_from_json(lines[0]) if lines[0] else None


def _answer(record: Record) -> GridOutcome:
    """Return what a measurement answers."""
    if record.outcome == "ok":
        return GridOutcome(outcome="ok", figures={name: int(scalar(record, name) or 0) for name in FIGURES})
    if record.outcome == "oom" and record.oom is not None:
        requested, free = record.oom.get("requested_bytes") or 0, record.oom.get("free_bytes") or 0
        figures = {"requested_bytes": requested, "free_bytes": free}
        return GridOutcome(outcome="oom", figures=figures, phase=record.oom.get("phase"))
    refused = record.outcome == "error"
    return GridOutcome(outcome="refused" if refused else "crashed", figures={}, reason=record.error)


def _attempted(point: Point, gpu: GpuSpec) -> GridOutcome:
    try:
        return _planned(point, gpu)
    except StepError as error:
        return GridOutcome(outcome="refused", figures={}, reason=str(error))


def _planned(point: Point, gpu: GpuSpec) -> GridOutcome:
    """Return what the plan says of the same, the allocator replayed with what the context leaves."""
    from qbench.memory.allocator.blocks import segment_size
    from qbench.memory.allocator.caching import replay
    from qbench.memory.allocator.config import AllocatorConfig
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
        return GridOutcome(outcome="oom", figures=figures, phase=_phase_of_run(phase))
    peaks = found.stats.peak_allocated_bytes, found.stats.peak_reserved_bytes
    static_bytes = traced.memory.static_bytes
    return GridOutcome(outcome="ok", figures=dict(zip(FIGURES, (static_bytes, *peaks), strict=True)))


def _phase_of_run(phase: str) -> str:
    """Return the phase in which a run would be; it does not tell apart what comes before the first step."""
    return "load" if phase in ("load", "prepare", "adapters", "build") else phase
