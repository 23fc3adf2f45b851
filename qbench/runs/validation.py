"""Plan again what was measured elsewhere, or by qbench on a GPU, and put both side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from qbench.catalog.gpus import GpuSpec, find_gpu
from qbench.catalog.published import COUNTS, FIGURES, PublishedRow, published_rows
from qbench.comparison.accuracy import FigureComparison
from qbench.memory.allocator.caching import replay
from qbench.memory.allocator.config import AllocatorConfig
from qbench.memory.history.ledger import emptied_at
from qbench.planner.hardware import card_of
from qbench.planner.plan import plan
from qbench.planner.trace import Trace, trace
from qbench.records.metrics import METRICS, scalar
from qbench.records.record import Record
from qbench.scenario.schema import Point

MEASURED_METRICS = ("static_bytes", "peak_allocated_bytes", "peak_reserved_bytes")
"""Metrics of qbench's own measurements that are compared with a plan."""

_AT_REST = ("weights", "quant_state", "adapters", "optimizer", "workspace")

_NO_FLASH = "planned without flash attention, which torch did not have there"

OnRun = Callable[[int, int, str], None]
"""Hears of each step before it is planned: how many were, how many there are, and which it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRun:
    """What one plan answers for: a step, on a GPU, with or without the flash kernel of attention."""

    point: Point
    gpu: GpuSpec
    flash: bool


def point_of(row: PublishedRow) -> Point:
    """Return the training step behind a published figure."""
    lora = None
    if row.r is not None:
        names = ("r", "lora_alpha", "lora_dropout", "target_modules")
        lora = {name: getattr(row, name) for name in names}
    train = {
        "per_device_train_batch_size": row.batch,
        "seq_len": row.seq_len,
        "gradient_checkpointing": row.gradient_checkpointing,
        "optim": row.optim,
        "recipe": row.recipe,
    }
    return Point.model_validate(
        {"model": row.model, "precision": row.precision, "lora": lora, "train": train}
    )


def run_of(row: PublishedRow) -> PublishedRun:
    """Return what to plan for a published figure.

    torch's wheels for Windows have no flash attention: USE_FLASH_ATTENTION is off for MSVC (CMakeLists.txt).
    """
    gpu = find_gpu(row.gpu)
    return PublishedRun(point=point_of(row), gpu=gpu, flash=not row.system.startswith("Windows"))


def compare_published(on_run: OnRun, rows: Sequence[PublishedRow] | None = None) -> list[FigureComparison]:
    """Return each published figure beside its plan; rows of one step share a plan."""
    members: dict[tuple[str, bool, Point], list[PublishedRow]] = {}
    for row in published_rows() if rows is None else rows:
        run = run_of(row)
        members.setdefault((run.gpu.name, run.flash, run.point), []).append(row)
    compared = []
    for index, group in enumerate(members.values()):
        run = run_of(group[0])
        on_run(index, len(members), run_text(run.point))
        card = replace(card_of(run.gpu), has_flash=run.flash)
        figures = planned_figures(trace(run.point, "cuda", card))
        compared += [_published(row, run, figures[row.figure]) for row in group]
    order = list(FIGURES)
    return sorted(compared, key=lambda found: (found.group, order.index(found.figure), found.id))


def _published(row: PublishedRow, run: PublishedRun, planned: int) -> FigureComparison:
    return FigureComparison(
        id=row.id,
        group=row.group,
        figure=row.figure,
        unit="count" if row.figure in COUNTS else "bytes",
        measured=row.value,
        planned=planned,
        run=run_text(run.point),
        gpu=f"{row.gpu}, {row.system}" if row.system else row.gpu,
        stack=row.stack,
        conditions=row.conditions if run.flash else f"{row.conditions}; {_NO_FLASH}",
        source=row.source,
    )


def run_text(point: Point) -> str:
    """Return a point's label with its checkpointing."""
    return f"{point.label} {'checkpointed' if point.train.gradient_checkpointing else 'saved'}"


def planned_figures(traced: Trace) -> dict[str, int]:
    """Return the figures of `catalog.published.FIGURES` that a trace with CUDA's kernels tells."""
    assert traced.reserved_bytes is not None
    history, config = traced.ledger.events, AllocatorConfig()
    emptied = emptied_at(traced.ledger.marks)
    served = replay(history, config, emptied=emptied).events
    starts = _starts(traced)
    first_step = replay(history[: starts["forward"][1]], config, emptied=emptied)

    def allocated(phase: str) -> int:
        return sum(size for _, size in served[: starts[phase][0]])

    return {
        "max_allocated": traced.memory.peak_bytes,
        "max_reserved": traced.reserved_bytes,
        "max_reserved_first_step": first_step.stats.peak_reserved_bytes,
        "allocated_after_load": allocated("adapters"),
        "allocated_after_adapters": traced.memory.static_bytes,
        "allocated_after_forward": allocated("backward"),
        "allocated_after_backward": allocated("optimizer"),
        "allocated_between_steps": _at_rest(traced, served),
        "trainable_params": traced.facts.trainable_params,
        "total_params": traced.facts.total_params,
    }


def _starts(traced: Trace) -> dict[str, list[int]]:
    """Return the events at which each phase began."""
    starts: dict[str, list[int]] = {}
    for event, phase in traced.ledger.marks:
        starts.setdefault(phase, []).append(event)
    return starts


def _at_rest(traced: Trace, served: Sequence[tuple[int, int]]) -> int:
    """Return the bytes of state and of the batch after the last step, without what outputs keep alive."""
    live: dict[int, int] = {}
    for handle, size in served:
        if size > 0:
            live[handle] = size
        else:
            del live[handle]
    before_steps = {handle for handle, _ in served[: _starts(traced)["forward"][0]]}
    return sum(
        size
        for handle, size in live.items()
        if handle in before_steps or traced.ledger.allocations[handle].category in _AT_REST
    )


def compare_measured(records: Iterable[Record], source: str, on_run: OnRun) -> list[FigureComparison]:
    """Return qbench's own measurements on a GPU beside plans for that GPU; other records are passed over.

    Raises CatalogError when the catalog does not know the GPU.
    """
    measured = [
        record
        for record in records
        if record.kind == "measurement" and record.device == "cuda" and record.outcome == "ok"
    ]
    plans: dict[tuple[Point, str], Record] = {}
    compared: list[FigureComparison] = []
    for index, record in enumerate(measured):
        name = str(record.device_name)
        on_run(index, len(measured), run_text(record.point))
        if (record.point, name) not in plans:
            plans[record.point, name] = plan(record.point, "cuda", [find_gpu(name)])
        compared += _measured(record, plans[record.point, name], name, source)
    return compared


def _measured(record: Record, planned: Record, gpu: str, source: str) -> Iterator[FigureComparison]:
    versions, repeat = record.versions, record.repeat
    for metric in MEASURED_METRICS:
        values = scalar(record, metric), scalar(planned, metric)
        if values[0] is None or values[1] is None:
            continue
        yield FigureComparison(
            id=record.point_id if repeat is None else f"{record.point_id}#{repeat + 1}",
            group=source,
            figure=metric,
            unit=METRICS[metric].unit,
            measured=round(values[0]),
            planned=round(values[1]),
            run=run_text(record.point),
            gpu=gpu,
            stack=", ".join(f"{name} {version}" for name, version in versions.items()),
            conditions=f"measured by qbench, {record.created_at}",
            source=source,
        )
