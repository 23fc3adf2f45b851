"""Trace a point: run its real training step on meta tensors and keep every allocation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qbench.errors import StepError, first_line
from qbench.memory.allocator import AllocatorConfig, replay
from qbench.memory.breakdown import MemoryProfile, profile
from qbench.memory.choices import Backend, Card
from qbench.memory.kernels import kernels_of
from qbench.memory.ledger import History
from qbench.memory.recording import without_gc
from qbench.plan.recorded import Recorded, record_point
from qbench.scenario.schema import Device, Point
from qbench.step.model import load_config, model_caveats
from qbench.step.recipe import recipe_caveats
from qbench.step.verify import ModelFacts, has_stacked_experts

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What a trace of two steps on meta tells."""

    facts: ModelFacts
    memory: MemoryProfile
    ledger: History
    reserved_bytes: int | None
    """Peak of the CUDA caching allocator's reserve; None on the CPU."""
    managed_bytes: int
    """Paged optimizer state, in managed memory that torch's counters do not see."""
    attention: tuple[str, ...]
    """CUDA's kernels of scaled_dot_product_attention that were taken (`choices.ATTENTION`)."""
    caveats: tuple[str, ...]
    """What a reader should know before trusting the numbers."""


def trace(
    point: Point,
    device: Device,
    card: Card | None = None,
    allocator: AllocatorConfig | None = None,
    *,
    all_layers: bool = False,
) -> Trace:
    """Return the trace of a point with the kernels of `device`; takes seconds and no memory to speak of.

    `card` and the settings of the `allocator` are those to plan for, on CUDA. `all_layers` runs every layer,
    where otherwise few are run and repeated.
    Raises StepError when the step cannot be built as the point says.
    """
    config = load_config(point)
    with without_gc():
        recorded, attention = _recorded(point, device, config, card or Card(), all_layers)
        history = recorded.history
        replayed = replay(history.events, allocator or AllocatorConfig()) if device == "cuda" else None
        memory = profile(history, None if replayed is None else replayed.events)
    return Trace(
        facts=recorded.facts,
        memory=memory,
        ledger=history,
        reserved_bytes=None if replayed is None else replayed.stats.peak_reserved_bytes,
        managed_bytes=recorded.managed_bytes,
        attention=tuple(sorted(attention)),
        caveats=tuple(_caveats(point, config, recorded.model)),
    )


def _recorded(
    point: Point, device: Device, config: PretrainedConfig, card: Card, all_layers: bool
) -> tuple[Recorded, set[Backend]]:
    """Return the recorded step and the attention kernels that it took."""
    with kernels_of(device, card) as attention:
        try:
            return record_point(point, device, config, card, all_layers=all_layers), attention
        except StepError:
            raise
        except Exception as error:
            # The libraries' own code runs here, and what it raises when a model and peft do not go together
            # is of any class.
            raise StepError(
                f"{point.label}: the libraries cannot run this step ({_reason(error)})"
            ) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _caveats(point: Point, config: PretrainedConfig, model: torch.nn.Module) -> Iterator[str]:
    yield from recipe_caveats(point)
    yield from model_caveats(config, point)
    if has_stacked_experts(model):
        yield (
            "experts run as one grouped matrix product (transformers' grouped_mm; on CUDA from compute "
            "capability 8.0), so memory does not depend on how tokens are routed"
        )
