"""The plans of several GPUs: which ranks are recorded, and what a reader should know of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from qbench.errors import StepError
from qbench.memory.allocator.config import AllocatorConfig
from qbench.memory.kernels.choices import Card
from qbench.planner.shared import SharedTraces
from qbench.planner.trace import Trace
from qbench.records.ranks import RankMemory
from qbench.scenario.distributed import TIMED
from qbench.scenario.schema import FOUR_BIT, Device, Point


def recorded_ranks(point: Point) -> tuple[int, ...]:
    """Return the ranks that tell all: shards are padded, so that the last ones may hold less."""
    shared = point.distributed
    return (0,) if shared is None or shared.strategy == "ddp" else (0, shared.gpus - 1)


def largest_rank(
    traces: SharedTraces,
    point: Point,
    device: Device,
    cards: Sequence[Card],
    allocator: AllocatorConfig,
    *,
    with_costs: bool,
) -> tuple[Card, dict[Card, Trace | StepError], list[RankMemory]]:
    """Return the first card with kernels for a step, the traces of the rank that takes most there, and the
    bytes of all ranks that were recorded."""
    different = list(dict.fromkeys(cards))
    by_rank = {
        rank: traces(point, device, different, allocator, with_costs=with_costs, rank=rank)
        for rank in recorded_ranks(point)
    }
    card = next((card for card in cards if isinstance(by_rank[0][card], Trace)), cards[0])
    found = max(by_rank.values(), key=lambda on: bytes_of(on[card]))
    traced = {rank: on[card] for rank, on in by_rank.items()}
    ranks = [rank_bytes(rank, one) for rank, one in traced.items() if isinstance(one, Trace)]
    return card, found, ranks


def bytes_of(found: Trace | StepError) -> tuple[int, int]:
    """Return what a rank reserves and allocates, to find the largest."""
    return (-1, -1) if isinstance(found, StepError) else (found.reserved_bytes or 0, found.memory.peak_bytes)


def rank_bytes(rank: int, found: Trace) -> RankMemory:
    """Return a rank's memory as a record holds it."""
    return {
        "rank": rank,
        "static_bytes": found.memory.static_bytes,
        "peak_allocated_bytes": found.memory.peak_bytes,
        "peak_reserved_bytes": found.reserved_bytes,
    }


def distributed_caveats(traced: Trace, point: Point) -> list[str]:
    """Return what a reader should know of a plan of several GPUs."""
    return list(_caveats(traced, point))


def _caveats(traced: Trace, point: Point) -> Iterator[str]:
    shared = point.distributed
    assert shared is not None
    if traced.work is not None:
        yield (
            "step times count what collectives take over the card's link, as far as the computing of their "
            "phase does not hide it; bridges between two cards do not count"
        )
    if shared.strategy not in TIMED:
        yield "no step time: communication of DeepSpeed is not planned"
    if shared.strategy == "zero3":
        yield "loading is not planned: weights are partitioned as they are loaded (deepspeed.zero.Init)"
    if shared.strategy.startswith("zero"):
        yield "DeepSpeed makes all weights, adapters too, of the dtype that it trains in, with fp32 copies"
    if shared.strategy == "fsdp2":
        yield (
            "loading is not planned: accelerate loads for FSDP2 on the host (fsdp_cpu_ram_efficient_loading)"
        )
        if point.precision in FOUR_BIT and point.quantization.bnb_4bit_quant_storage == "uint8":
            yield (
                "4-bit weights stored as uint8 are not sharded: every GPU holds all of them; set "
                "bnb_4bit_quant_storage to bfloat16"
            )
        if point.precision in FOUR_BIT:
            yield "the quantization state (absmax) is not sharded: every GPU holds all of it"
        if point.train.autocast != "none" and point.lora is None:
            yield "accelerate makes trainable weights fp32 before it shards them (accelerate 1.15)"
        # Each rank but the last ones holds as many rows (torch, `_get_dim0_padded_size`).
        if (
            point.lora is not None
            and math.ceil(point.lora.r / shared.gpus) * (shared.gpus - 1) >= point.lora.r
        ):
            yield (
                f"adapters of rank {point.lora.r} are cut by rows for {shared.gpus} GPUs: some GPUs hold "
                "nothing but padding of lora_A"
            )
