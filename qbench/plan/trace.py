"""Trace a point: run its real training step on meta tensors and keep every allocation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from qbench.errors import StepError, first_line
from qbench.memory.allocator import AllocatorConfig, replay
from qbench.memory.autocast import keep_rotary_tables, meta_autocast
from qbench.memory.breakdown import MemoryProfile, profile
from qbench.memory.kernels import kernels_of
from qbench.memory.ledger import Ledger
from qbench.memory.recording import record_steps
from qbench.plan.loading import record_loading
from qbench.scenario.schema import Device, Point
from qbench.step.model import load_config, position_caveat
from qbench.step.recipe import Context
from qbench.step.training_step import AUTOCAST_DTYPES, TrainingStep, build_step
from qbench.step.verify import ModelFacts, has_stacked_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What a trace of two steps on meta tells."""

    facts: ModelFacts
    memory: MemoryProfile
    ledger: Ledger
    reserved_bytes: int | None
    """Peak of the CUDA caching allocator's reserve; None on the CPU."""
    managed_bytes: int
    """Paged optimizer state, in managed memory that torch's counters do not see."""
    caveats: tuple[str, ...]
    """What a reader should know before trusting the numbers."""


def trace(
    point: Point, device: Device, library_buffers: dict[str, int] | None = None, *, flash: bool = True
) -> Trace:
    """Return the trace of a point with the kernels of `device`; takes seconds and no memory to speak of.

    `library_buffers` and `flash` are those of `record_steps` and `kernels_of`, for CUDA.
    Raises StepError when the step cannot be built as the point says.
    """
    config = load_config(point)
    with kernels_of(device, flash):
        try:
            step = _built(point, device, config)
            # Host tensors (AdamW's step counters) are on the same memory as the model when the CPU trains.
            device_types = {"meta", "cpu"} if device == "cpu" else {"meta"}
            load = partial(record_loading, model=step.model, point=point) if device == "cuda" else None
            ledger = record_steps(step, device_types, device, library_buffers, load).ledger
        except StepError:
            raise
        except Exception as error:
            # The libraries' own code runs here, and what it raises when a model and peft do not go together
            # is of any class.
            raise StepError(
                f"{point.label}: the libraries cannot run this step ({_reason(error)})"
            ) from error
    replayed = replay(ledger.events, AllocatorConfig()) if device == "cuda" else None
    return Trace(
        facts=step.facts,
        memory=profile(ledger, None if replayed is None else replayed.events),
        ledger=ledger,
        reserved_bytes=None if replayed is None else replayed.stats.peak_reserved_bytes,
        managed_bytes=step.managed_bytes,
        caveats=tuple(_caveats(point, config, step)),
    )


def _built(point: Point, device: Device, config: PretrainedConfig) -> TrainingStep:
    autocast = _meta_autocast(point, device)
    step = build_step(point, "meta", kernels=device, config=config, meta_autocast=autocast)
    if autocast is not None:
        keep_rotary_tables(step.model)
    return step


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _caveats(point: Point, config: PretrainedConfig, step: TrainingStep) -> Iterator[str]:
    beyond = position_caveat(config, point.train.seq_len)
    if beyond is not None:
        yield beyond
    if has_stacked_experts(step.model):
        yield (
            "experts run as one grouped matrix product (transformers' grouped_mm; on CUDA from compute "
            "capability 8.0), so memory does not depend on how tokens are routed"
        )


def _meta_autocast(point: Point, device: Device) -> Context | None:
    """Return what makes the point's autocast context on meta, None where it asks for none."""
    name = point.train.autocast
    return None if name == "none" else partial(meta_autocast, device, AUTOCAST_DTYPES[name])
