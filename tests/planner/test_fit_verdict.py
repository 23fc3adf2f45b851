"""What CUDA takes beside the tensors, and whether and how a card holds a plan."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from qbench.catalog.capabilities import ContextSize
from qbench.catalog.gpus import GpuSpec, find_gpu
from qbench.memory.allocator.caching import replay
from qbench.memory.allocator.config import AllocatorConfig
from qbench.memory.history.ledger import Allocation
from qbench.memory.kernels.choices import Capability, Card
from qbench.planner.fit_verdict import fit_on
from qbench.planner.hardware import card_of, library_buffers
from qbench.records.fits import Fit
from qbench.units import MIB

CONTEXT = 300 * MIB
KNOWN = ContextSize(least=CONTEXT, most=CONTEXT, source="a context of one size")


@dataclass
class Written:
    """A history that was written by hand."""

    allocations: list[Allocation] = field(default_factory=list)
    events: list[tuple[int, int]] = field(default_factory=list)
    marks: list[tuple[int, str]] = field(default_factory=list)

    def take(self, mib: int, phase: str = "forward") -> int:
        handle = len(self.allocations)
        self.allocations.append(Allocation(mib * MIB, phase, "aten.mm.default", "layers.0", "", True))
        self.events.append((handle, mib * MIB))
        return handle

    def drop(self, handle: int) -> None:
        self.events.append((handle, -self.allocations[handle].num_bytes))


def held(history: Written, free_mib: int, config: AllocatorConfig | None = None) -> Fit:
    """Return how a history goes on a card that has so much left beside the context."""
    gpu = card_with(CONTEXT + free_mib * MIB)
    config = config or AllocatorConfig()
    reserved = replay(history.events, config).stats.peak_reserved_bytes
    return fit_on(gpu, history, reserved, KNOWN, config)


def card_with(num_bytes: int) -> GpuSpec:
    return replace(find_gpu("RTX 4090"), memory_bytes=num_bytes)


@pytest.fixture
def grown() -> Written:
    """A tensor of 30 MiB is freed and one of 40 made: 70 MiB reserved, 40 allocated."""
    history = Written()
    history.drop(history.take(30))
    history.take(40, "backward")
    return history


def test_a_cublas_workspace_for_each_of_the_two_threads() -> None:
    # Two of 8.125 MiB are the 17.04 MB that published memory_allocated shows beside weights and adapters.
    assert library_buffers(Card()) == {"forward": 8_519_680, "backward": 8_519_680}
    assert library_buffers(Card(capability=(9, 0))) == {"forward": 32 * MIB, "backward": 32 * MIB}


@pytest.mark.parametrize(("name", "capability"), [(None, (8, 0)), ("H100 SXM", (9, 0)), ("MI300X", (8, 0))])
def test_a_card_without_cuda_is_planned_as_none_is(name: str | None, capability: Capability) -> None:
    assert card_of(None if name is None else find_gpu(name)).capability == capability


def test_a_card_holds_what_torch_reports_and_not_a_byte_more(grown: Written) -> None:
    gpu = card_with(CONTEXT + 70 * MIB)
    config = AllocatorConfig()
    exact = fit_on(gpu, grown, 70 * MIB, KNOWN, config)
    assert (exact.fits, exact.verdict, exact.headroom_bytes, exact.num_alloc_retries) == (True, "fits", 0, 0)
    more = fit_on(card_with(gpu.memory_bytes - 1), grown, 70 * MIB, KNOWN, config)
    assert more.verdict != "fits"


def test_a_cache_that_is_released_in_time_makes_room(grown: Written) -> None:
    # With 60 MiB the 30 of the first tensor must go before 40 can come: 20 are left.
    fit = held(grown, 60)
    assert (fit.fits, fit.num_alloc_retries, fit.headroom_bytes) == (True, 1, 20 * MIB)
    assert fit.verdict == "tight"


def test_out_of_memory_names_the_place_and_the_bytes(grown: Written) -> None:
    fit = held(grown, 39)
    assert (fit.fits, fit.verdict) == (False, "does not fit")
    assert fit.shortage == {
        "phase": "backward",
        "op": "aten.mm.default",
        "module": "layers.0",
        "requested_bytes": 40 * MIB,
        "free_bytes": 39 * MIB,
    }
    # 70 MiB would be reserved where there is room.
    assert fit.headroom_bytes == -31 * MIB
    assert fit.num_alloc_retries is None


@pytest.mark.parametrize(
    ("free_mib", "verdict"),
    # With the largest context 38 MiB are free of the 40 that the second tensor takes, with the least 40; the
    # cache of the first one goes in time. One MiB less, and even the least context leaves too little.
    [(70, "fits"), (40, "tight"), (38, "tight"), (37, "does not fit")],
)
def test_a_fit_that_depends_on_the_context_is_tight(grown: Written, free_mib: int, verdict: str) -> None:
    context = ContextSize(least=CONTEXT - 2 * MIB, most=CONTEXT, source="a context of two sizes")
    fit = fit_on(card_with(CONTEXT + free_mib * MIB), grown, 70 * MIB, context, AllocatorConfig())
    # Whether it fits is said for the largest context.
    assert (fit.verdict, fit.fits) == (verdict, free_mib >= 40)
    assert fit.context_bytes == [298 * MIB, 300 * MIB]


def test_a_card_smaller_than_the_context_holds_nothing(grown: Written) -> None:
    # Neither of the two contexts leaves anything, however far they are apart.
    wide = ContextSize(least=CONTEXT, most=2 * CONTEXT, source="contexts that differ by more than the step")
    fit = fit_on(card_with(CONTEXT // 2), grown, 70 * MIB, wide, AllocatorConfig())
    assert (fit.fits, fit.verdict) == (False, "does not fit")
    assert fit.shortage is not None
    assert fit.shortage["phase"] == "forward"


def test_expandable_segments_need_no_retry(grown: Written) -> None:
    # Pages of 20 MiB: two for the first tensor, and the same two for the second.
    fit = held(grown, 40, AllocatorConfig(expandable_segments=True))
    assert (fit.verdict, fit.headroom_bytes) == ("fits", 0)


def test_a_context_that_is_a_little_smaller_may_save_a_cache_that_serves_much_more() -> None:
    history = Written()
    history.drop(history.take(14))
    history.take(1)  # A segment of 2 MiB in the pool of small blocks.
    history.take(3)  # Of the 14 MiB in the cache, or of a new segment of 20 MiB.
    context = ContextSize(least=CONTEXT - 2 * MIB, most=CONTEXT, source="a context of two sizes")
    # With 14 MiB the cache goes for the 2, and of the 20 then wanted 8 are short; with 16 MiB it stays.
    fit = fit_on(card_with(CONTEXT + 14 * MIB), history, 16 * MIB, context, AllocatorConfig())
    assert fit.shortage is not None
    assert fit.shortage["requested_bytes"] - fit.shortage["free_bytes"] == 8 * MIB
    assert (fit.fits, fit.verdict) == (False, "tight")
