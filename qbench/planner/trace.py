"""Trace a point: run its real training step on meta tensors and keep every allocation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qbench.errors import StepError, first_line
from qbench.memory.allocator.caching import replay
from qbench.memory.allocator.config import AllocatorConfig
from qbench.memory.allocator.fast_replay import quick_replay
from qbench.memory.history.breakdown import MemoryProfile, profile_of
from qbench.memory.history.events import Ints, SizedHistory, declared_bytes, event_bytes
from qbench.memory.history.ledger import History
from qbench.memory.history.recording import without_gc
from qbench.memory.kernels.choices import Backend, Card, adds_up_in_fp32
from qbench.memory.kernels.replacements import kernels_of
from qbench.memory.work.log import WorkTable
from qbench.planner.account import Account, account_of
from qbench.planner.recorded import Recorded, record_point
from qbench.records.ranks import Collective
from qbench.scenario.schema import Device, Point
from qbench.step.data import accumulation_caveats
from qbench.step.dtypes import AUTOCAST_DTYPES, base_dtype
from qbench.step.images import image_caveats
from qbench.step.model import load_config, model_caveats
from qbench.step.recipe import recipe_caveats
from qbench.step.verify import ModelFacts

if TYPE_CHECKING:
    from transformers import PretrainedConfig


MOST_MEMORY_BYTES = 2**62
"""Beyond that, sums of bytes are no 64-bit numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The result of tracing two steps on meta."""

    facts: ModelFacts
    memory: MemoryProfile
    ledger: History
    declared_bytes: dict[str, int]
    """Bytes as requested, of all allocations by the category that they were made with."""
    reserved_bytes: int | None
    """Peak of the CUDA caching allocator's reserve; None on the CPU."""
    managed_bytes: int
    """Paged optimizer state, in managed memory that torch's counters do not see."""
    attention: tuple[str, ...]
    """CUDA's kernels of scaled_dot_product_attention that were taken (`choices.ATTENTION`)."""
    caveats: tuple[str, ...]
    """What a reader should know before trusting the numbers."""
    collectives: tuple[Collective, ...] = ()
    """What a step sends between several GPUs."""
    num_gpus: int = 1
    """Processes that train together; this is one of them."""
    is_compiled: bool = False
    """Whether torch.compile made the kernels of `work`."""
    work: WorkTable | None
    """What the step's operators cost and how often each runs; None if it was not requested."""


def trace(
    point: Point,
    device: Device,
    card: Card | None = None,
    allocator: AllocatorConfig | None = None,
    *,
    all_layers: bool = False,
    with_costs: bool = False,
    rank: int = 0,
) -> Trace:
    """Return the trace of a point with the kernels of `device`; takes seconds and hardly any memory.

    `card` and the settings of the `allocator` are those to plan for, on CUDA. `all_layers` runs every layer,
    where otherwise few are run and repeated. `with_costs` takes down what operators cost. `rank` is the
    process to trace of a point of several GPUs.
    Raises StepError when the step cannot be built as the point says.
    """
    config = load_config(point)
    chosen = card or Card()
    account = record_account(
        point, device, config, chosen, all_layers=all_layers, with_costs=with_costs, rank=rank
    )
    return trace_of(account, point, device, config, allocator or AllocatorConfig())


def record_account(
    point: Point,
    device: Device,
    config: PretrainedConfig,
    card: Card,
    *,
    all_layers: bool = False,
    with_costs: bool = False,
    rank: int = 0,
) -> Account:
    """Return the account of a point's step, run on meta. Raises StepError as `trace` does."""
    if device == "cuda":
        _check_card(point, card)
    with without_gc():
        return account_of(*_recorded(point, device, config, card, all_layers, with_costs, rank))


def _check_card(point: Point, card: Card) -> None:
    """Raise StepError where a card has no kernel for the loss of trl (trl/kernels/chunked_logprob.py)."""
    autocast = AUTOCAST_DTYPES.get(point.train.autocast)
    if point.choices.loss_type == "chunked" and not adds_up_in_fp32(
        card, autocast or base_dtype(point.precision)
    ):
        raise StepError(
            "trl's loss adds products of bf16 up in fp32, which cuBLAS refuses below compute "
            "capability 8.0; choose autocast fp16 or loss_type full_logits"
        )


def trace_of(
    account: Account, point: Point, device: Device, config: PretrainedConfig, allocator: AllocatorConfig
) -> Trace:
    """Return the trace of a point whose step has this account. Raises StepError beyond 4 EiB."""
    outline = account.outline
    history = SizedHistory(outline, account.asked)
    sizes, reserved_bytes = event_bytes(outline, account.asked), None
    if np.cumsum(sizes, dtype=np.float64).max(initial=0.0) >= MOST_MEMORY_BYTES:
        raise StepError("the step takes more than 4 EiB (2^62 bytes), which cannot be counted")
    with without_gc():
        if device == "cuda":
            sizes, reserved_bytes = _served(history, sizes, allocator)
        memory = profile_of(outline, sizes)
    return Trace(
        facts=account.facts,
        memory=memory,
        ledger=history,
        declared_bytes=declared_bytes(outline, account.asked),
        reserved_bytes=reserved_bytes,
        managed_bytes=account.managed_bytes,
        attention=account.attention,
        caveats=tuple(_caveats(point, config, account.has_stacked_experts)),
        collectives=account.collectives,
        num_gpus=point.num_gpus,
        is_compiled=point.train.torch_compile,
        work=None if account.work is None else account.work.table(),
    )


def _served(history: SizedHistory, sizes: Ints, allocator: AllocatorConfig) -> tuple[Ints, int]:
    """Return the block sizes of all events and the peak of what the caching allocator reserves."""
    if allocator == AllocatorConfig():
        return quick_replay(history.outline, sizes)
    replayed = replay(
        history.events, allocator, emptied=history.outline.emptied, streams=history.outline.streams
    )
    blocks = [size for _, size in replayed.events]
    return np.array(blocks, dtype=np.int64), replayed.stats.peak_reserved_bytes


def _recorded(
    point: Point,
    device: Device,
    config: PretrainedConfig,
    card: Card,
    all_layers: bool,
    with_costs: bool,
    rank: int,
) -> tuple[Recorded, set[Backend]]:
    """Return the recorded step and the attention kernels that it took."""
    with kernels_of(device, card) as attention:
        try:
            recorded = record_point(
                point, device, config, card, all_layers=all_layers, with_costs=with_costs, rank=rank
            )
            return recorded, attention
        except StepError:
            raise
        except Exception as error:
            # The libraries' own code runs here, and what it raises when a model and peft do not go together
            # is of any class.
            raise StepError(f"the libraries cannot run this step ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _caveats(point: Point, config: PretrainedConfig, stacked_experts: bool) -> Iterator[str]:
    yield from recipe_caveats(point)
    yield from accumulation_caveats(point)
    yield from model_caveats(config, point)
    yield from image_caveats(point, config)
    if point.train.torch_compile:
        yield "torch_compile: times are those of compiled kernels; memory is planned as without it"
    if stacked_experts:
        yield (
            "experts run as one grouped matrix product (transformers' grouped_mm; on CUDA from compute "
            "capability 8.0), so memory does not depend on how tokens are routed"
        )
