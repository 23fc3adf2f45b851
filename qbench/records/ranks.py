"""What a record holds of each of several GPUs, and of what goes between them."""

from __future__ import annotations

from typing_extensions import NotRequired, TypedDict  # pydantic cannot read that of Python before 3.12.

from qbench.records.stored import Whole, Words


class RankMemory(TypedDict):
    """Memory of one process on one card, where several train together."""

    rank: Whole
    static_bytes: NotRequired[Whole | None]
    peak_allocated_bytes: NotRequired[Whole | None]
    peak_reserved_bytes: NotRequired[Whole | None]
    device: NotRequired[Whole | None]
    """Number of the card, of a dry run."""


class Collective(TypedDict):
    """Calls of one collective in an optimizer step, alike in size, on one of several GPUs."""

    op: Words
    """all_gather, reduce_scatter, all_reduce, broadcast or all_to_all."""
    group: Words
    """Module whose weights or gradients are sent, `*` for each layer's number; a bucket; empty otherwise."""
    phase: Words
    bytes: Whole
    """Of the whole message of one call: what an all-gather puts together, what the others take."""
    calls: Whole
