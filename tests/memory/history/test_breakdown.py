"""Hand-made ledgers: the peak, what was alive at it, the phases and the timeline."""

from __future__ import annotations

import numpy as np

from qbench.memory.history.breakdown import TIMELINE_POINTS, MemoryProfile, profile, profile_of
from qbench.memory.history.events import outline_of
from qbench.memory.history.ledger import Ledger
from qbench.records.metrics import BREAKDOWN, OF_SEVERAL_GPUS
from qbench.units import round_up


def add(
    ledger: Ledger, num_bytes: int, category: str = "", in_forward: bool = False, module: str = ""
) -> int:
    """Allocate in a ledger; return the handle."""
    handle = ledger.allocate(num_bytes, "aten.mm.default", category)
    ledger.allocations[handle].in_forward = in_forward
    ledger.allocations[handle].module = module
    return handle


def free(ledger: Ledger, *handles: int) -> None:
    for handle in handles:
        ledger.events.append((handle, -round_up(ledger.allocations[handle].num_bytes, 512)))


def one_step() -> Ledger:
    """Return a step whose peak is the temporary tensor of 4096 B in its backward."""
    ledger = Ledger(set())
    add(ledger, 4096, "weights")
    add(ledger, 1024, "adapters")
    ledger.begin_phase("forward")
    saved = add(ledger, 2048, in_forward=True)
    passing = add(ledger, 512, in_forward=True)
    free(ledger, passing)
    ledger.begin_phase("loss")
    logits = add(ledger, 8192, "logits_loss", in_forward=True)
    ledger.begin_phase("backward")
    gradient = add(ledger, 1024, "gradients")
    recomputed = add(ledger, 1536, in_forward=True)
    scratch = add(ledger, 4096, module="layers.1.mlp")
    free(ledger, scratch, recomputed, logits, saved)
    ledger.begin_phase("optimizer")
    add(ledger, 2048, "optimizer")
    free(ledger, gradient)
    return ledger


def test_peak_and_its_breakdown() -> None:
    memory = profile(one_step())
    assert memory.breakdown == {
        "weights": 4096,
        "quant_state": 0,
        "adapters": 1024,
        "gradients": 1024,
        "optimizer": 0,
        # 2048 saved by forward and 1536 recomputed.
        "activations": 3584,
        "logits_loss": 8192,
        "temporaries": 4096,
        "workspace": 0,
    }
    # Categories of several GPUs stand only where there are any.
    assert (*memory.breakdown, *OF_SEVERAL_GPUS) == BREAKDOWN
    assert memory.peak_bytes == 4096 + 1024 + 2048 + 8192 + 1024 + 1536 + 4096
    assert memory.peak_at == {"phase": "backward", "op": "aten.mm.default", "module": "layers.1.mlp"}


def test_static_bytes_are_those_before_the_first_phase() -> None:
    memory = profile(one_step())
    assert memory.static_bytes == 4096 + 1024
    assert {name: size for name, size in memory.static_breakdown.items() if size} == {
        "weights": 4096,
        "adapters": 1024,
    }


def test_each_phase_has_its_own_peak() -> None:
    assert profile(one_step()).phases == {
        "forward": 5120 + 2048 + 512,
        "loss": 5120 + 2048 + 8192,
        "backward": 22016,
        # Weights, adapters, gradient and the new state.
        "optimizer": 5120 + 1024 + 2048,
    }


def test_tensor_of_forward_that_backward_does_not_need_is_temporary() -> None:
    ledger = Ledger(set())
    add(ledger, 512, "weights")
    ledger.begin_phase("forward")
    kept, passing = add(ledger, 1024, in_forward=True), add(ledger, 4096, in_forward=True)
    free(ledger, passing)
    ledger.begin_phase("backward")
    free(ledger, kept)
    memory = profile(ledger)
    assert memory.peak_at["phase"] == "forward"
    assert (memory.breakdown["activations"], memory.breakdown["temporaries"]) == (1024, 4096)


def test_peak_may_be_what_is_at_rest() -> None:
    ledger = Ledger(set())
    big = add(ledger, 1 << 20, "weights")
    ledger.begin_phase("forward")
    free(ledger, big)
    add(ledger, 512, in_forward=True)
    memory = profile(ledger)
    assert memory.peak_bytes == memory.static_bytes == memory.breakdown["weights"] == 1 << 20


def test_sizes_of_an_allocator_take_the_place_of_the_ledgers() -> None:
    ledger = one_step()
    blocks = np.array([2 * size for _, size in ledger.events])
    memory, plain = profile_of(outline_of(ledger), blocks), profile(ledger)
    assert memory.peak_bytes == 2 * plain.peak_bytes
    assert memory.static_bytes == 2 * plain.static_bytes
    assert memory.breakdown == {name: 2 * size for name, size in plain.breakdown.items()}
    assert memory.peak_at == plain.peak_at


def many_steps(num_steps: int, num_events: int) -> MemoryProfile:
    ledger = Ledger(set())
    add(ledger, 512, "weights")
    for step in range(num_steps):
        ledger.begin_phase("forward")
        handles = [add(ledger, 512 + step, in_forward=True) for _ in range(num_events // 2)]
        ledger.begin_phase("backward")
        free(ledger, *handles)
    return profile(ledger)


def test_short_timeline_holds_every_event_of_the_last_step() -> None:
    # 512 B of weights, then three tensors of 513 B (1024 rounded) come and go.
    assert many_steps(2, 6).timeline == [[0, 1536], [1, 2560], [2, 3584], [3, 2560], [4, 1536], [5, 512]]


def test_long_timeline_is_thinned_and_keeps_the_peak() -> None:
    memory = many_steps(1, 10_001)
    assert len(memory.timeline) <= TIMELINE_POINTS
    # 5000 tensors of 512 B over 512 B of weights.
    assert max(size for _, size in memory.timeline) == memory.peak_bytes == 5001 * 512
    starts = [event for event, _ in memory.timeline]
    assert starts == list(range(0, 10_000, 25))
