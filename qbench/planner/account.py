"""What a recorded step says: its outline, the bytes of each allocation, and the facts of the model."""

from __future__ import annotations

from dataclasses import dataclass

from qbench.memory.history.events import Ints, Outline, bytes_asked, outline_of
from qbench.memory.kernels.choices import Backend
from qbench.memory.work.columns import WorkColumns, columns_of
from qbench.planner.recorded import Recorded
from qbench.records.ranks import Collective
from qbench.step.verify import ModelFacts, has_stacked_experts


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """All that a trace is made of. Of points that differ in sizes only, nothing but the numbers differs."""

    facts: ModelFacts
    managed_bytes: int
    outline: Outline
    asked: Ints
    """The bytes of each allocation, as requested."""
    attention: tuple[Backend, ...]
    has_stacked_experts: bool
    collectives: tuple[Collective, ...] = ()
    work: WorkColumns | None = None
    """What the step's operators cost; None if it was not requested."""


def account_of(recorded: Recorded, attention: set[Backend]) -> Account:
    """Return the account of a recorded step and the attention kernels that it took."""
    return Account(
        facts=recorded.facts,
        managed_bytes=recorded.managed_bytes,
        outline=outline_of(recorded.history),
        asked=bytes_asked(recorded.history),
        attention=tuple(sorted(attention)),
        has_stacked_experts=has_stacked_experts(recorded.model),
        collectives=recorded.collectives,
        work=None if recorded.work is None else columns_of(recorded.work),
    )
