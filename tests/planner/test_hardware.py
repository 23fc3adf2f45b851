"""What CUDA takes beside the tensors, and whether and how a card holds a plan."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from qbench.catalog.gpus import GpuSpec, find_gpu
from qbench.memory.allocator.caching import AllocatorConfig, replay
from qbench.memory.history.ledger import Allocation
from qbench.memory.kernels.choices import Capability, Card
from qbench.planner.hardware import Fit, card_of, fit_on, library_buffers
from qbench.units import MIB

CONTEXT = 300 * MIB


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
    return fit_on(gpu, history, reserved, CONTEXT, config)


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
    exact = fit_on(gpu, grown, 70 * MIB, CONTEXT, config)
    assert (exact.fits, exact.verdict, exact.headroom_bytes, exact.num_alloc_retries) == (True, "ok", 0, 0)
    more = fit_on(card_with(gpu.memory_bytes - 1), grown, 70 * MIB, CONTEXT, config)
    assert more.verdict != "ok"


def test_a_cache_that_is_released_in_time_makes_room(grown: Written) -> None:
    # With 60 MiB the 30 of the first tensor must go before 40 can come: 20 are left.
    fit = held(grown, 60)
    assert (fit.fits, fit.num_alloc_retries, fit.headroom_bytes) == (True, 1, 20 * MIB)
    assert fit.verdict == "ok after allocator retries (1)"


def test_out_of_memory_names_the_place_and_the_bytes(grown: Written) -> None:
    fit = held(grown, 39)
    assert not fit.fits
    assert fit.verdict == "oom in backward: aten.mm.default of layers.0 asks for 40.0 MiB, 39.0 MiB free"
    # 70 MiB would be reserved where there is room.
    assert fit.headroom_bytes == -31 * MIB
    assert fit.num_alloc_retries is None


def test_a_card_smaller_than_the_context_holds_nothing(grown: Written) -> None:
    fit = fit_on(card_with(CONTEXT // 2), grown, 70 * MIB, CONTEXT, AllocatorConfig())
    assert not fit.fits
    assert fit.verdict.startswith("oom in forward")


def test_expandable_segments_need_no_retry(grown: Written) -> None:
    # Pages of 20 MiB: two for the first tensor, and the same two for the second.
    fit = held(grown, 40, AllocatorConfig(expandable_segments=True))
    assert (fit.verdict, fit.headroom_bytes) == ("ok", 0)
