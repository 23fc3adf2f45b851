"""What GPUs wait for each other: bytes over the link, as far as computing does not hide them."""

from __future__ import annotations

import pytest

from qbench.catalog.efficiencies import Case
from qbench.catalog.gpus import find_gpu
from qbench.planner.network import Network
from qbench.records.ranks import Collective


def sent(op: str, phase: str, num_bytes: int, calls: int) -> Collective:
    return {"op": op, "group": "layers.*", "phase": phase, "bytes": num_bytes, "calls": calls}


def network(*collectives: Collective, gpu: str = "A100-SXM4-80GB", case: Case = "value") -> Network:
    return Network(find_gpu(gpu), 8, collectives, case)


@pytest.mark.parametrize(
    ("op", "gpu", "seconds"),
    [
        # 7 of 8 parts of 2.4 GB over 0.80 of 300 GB/s; an all-reduce twice; a broadcast once around.
        ("all_gather", "A100-SXM4-80GB", 20e-6 + 7 / 8 * 2.4 / 240),
        ("all_reduce", "A100-SXM4-80GB", 20e-6 + 2 * 7 / 8 * 2.4 / 240),
        # Over 0.63 of the 31.5 GB/s of PCIe 4.0.
        ("all_gather", "RTX 4090", 20e-6 + 7 / 8 * 2.4 / (0.63 * 31.5)),
    ],
)
def test_a_message_goes_round_the_ring(op: str, gpu: str, seconds: float) -> None:
    assert network(gpu=gpu).call_s(op, 2_400_000_000) == pytest.approx(seconds)


def test_only_the_first_message_and_what_outlasts_computing_is_waited_for() -> None:
    call_s = 20e-6 + 7 / 8 * 2.4 / 240
    ten = network(sent("all_gather", "forward", 2_400_000_000, 10))
    assert ten.exposed_s({"forward": 1.0}) == {"forward": pytest.approx(call_s)}
    # Nine calls of 8.77 ms against 50 ms.
    assert ten.exposed_s({"forward": 0.05}) == {"forward": pytest.approx(10 * call_s - 0.05)}


def test_backward_begins_with_weights_and_ends_with_gradients() -> None:
    both = network(
        sent("all_gather", "backward", 2_400_000_000, 10),
        sent("reduce_scatter", "backward", 4_800_000_000, 10),
    )
    expected = 20e-6 + 7 / 8 * 2.4 / 240 + 20e-6 + 7 / 8 * 4.8 / 240
    assert both.exposed_s({"backward": 1.0}) == {"backward": pytest.approx(expected)}


def test_the_slowest_case_hides_nothing_and_the_optimizer_waits() -> None:
    slow = network(sent("all_gather", "forward", 2_400_000_000, 10), case="slowest")
    assert slow.exposed_s({"forward": 9.0}) == {"forward": pytest.approx(10 * (33e-6 + 7 / 8 * 2.4 / 216))}
    norms = network(sent("all_reduce", "optimizer", 4, 3))
    assert norms.exposed_s({"optimizer": 1.0}) == {"optimizer": pytest.approx(60e-6, rel=1e-5)}


def test_a_card_of_which_no_node_has_several_has_no_time() -> None:
    assert network(sent("all_gather", "forward", 1, 1), gpu="GH200 96GB").exposed_s({}) is None
