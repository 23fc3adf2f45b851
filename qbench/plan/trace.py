"""Trace a point: run its real training step on meta tensors and keep every allocation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from qbench.errors import StepError
from qbench.memory.allocator import AllocatorConfig, replay
from qbench.memory.autocast import keep_rotary_tables, meta_autocast
from qbench.memory.breakdown import MemoryProfile, profile
from qbench.memory.kernels import kernels_of
from qbench.memory.ledger import Ledger
from qbench.memory.recording import record_steps
from qbench.scenario.schema import Device, Point
from qbench.step.model import load_config, position_caveat
from qbench.step.recipe import Context
from qbench.step.training_step import AUTOCAST_DTYPES, build_step
from qbench.step.verify import ModelFacts


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


def trace(point: Point, device: Device, library_buffers: dict[str, int] | None = None) -> Trace:
    """Return the trace of a point with the kernels of `device`; takes seconds and no memory to speak of.

    Raises StepError when the step cannot be built as the point says.
    """
    config = load_config(point)
    caveat = position_caveat(config, point.train.seq_len)
    with kernels_of(device):
        autocast = _meta_autocast(point, device)
        step = build_step(point, "meta", kernels=device, config=config, meta_autocast=autocast)
        if autocast is not None:
            keep_rotary_tables(step.model)
        # Host tensors (AdamW's step counters) are on the same memory as the model when the CPU trains.
        device_types = {"meta", "cpu"} if device == "cpu" else {"meta"}
        try:
            ledger = record_steps(step, device_types, device, library_buffers).ledger
        except (NotImplementedError, RuntimeError) as error:
            first_line = str(error).strip().splitlines()[0]
            raise StepError(f"{point.label}: this step cannot be traced on meta ({first_line})") from error
    replayed = replay(ledger.events, AllocatorConfig()) if device == "cuda" else None
    return Trace(
        facts=step.facts,
        memory=profile(ledger, None if replayed is None else replayed.events),
        ledger=ledger,
        reserved_bytes=None if replayed is None else replayed.stats.peak_reserved_bytes,
        managed_bytes=step.managed_bytes,
        caveats=() if caveat is None else (caveat,),
    )


def _meta_autocast(point: Point, device: Device) -> Context | None:
    """Return what makes the point's autocast context on meta, None where it asks for none."""
    name = point.train.autocast
    return None if name == "none" else partial(meta_autocast, device, AUTOCAST_DTYPES[name])
