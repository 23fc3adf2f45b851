"""Hand-made tensors under the ledger: what counts, when it is freed, and how it is named."""

from __future__ import annotations

import pytest
import torch

from qbench.memory.history.ledger import Ledger


def live_bytes(ledger: Ledger) -> int:
    return sum(size for _, size in ledger.events)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_allocation_and_free_are_events_in_order(device: str) -> None:
    ledger = Ledger({device})
    with ledger:
        first = torch.empty(256, device=device)  # 256 x 4 B
        second = torch.empty(1024, device=device)  # 1024 x 4 B
        del first
        third = torch.empty(128, device=device)  # 128 x 4 B
    assert ledger.events == [(0, 1024), (1, 4096), (0, -1024), (2, 512)]
    del second, third
    assert ledger.events[4:] == [(1, -4096), (2, -512)]
    assert live_bytes(ledger) == 0


@pytest.mark.parametrize(
    ("num_elements", "asked", "rounded"), [(1, 4, 512), (128, 512, 512), (129, 516, 1024), (1000, 4000, 4096)]
)
def test_sizes_are_rounded_up_to_512_bytes(num_elements: int, asked: int, rounded: int) -> None:
    ledger = Ledger({"cpu"})
    with ledger:
        tensor = torch.zeros(num_elements)
    assert ledger.events == [(0, rounded)]
    assert ledger.allocations[0].num_bytes == asked == tensor.untyped_storage().nbytes()


def test_tensor_without_bytes_is_not_an_allocation() -> None:
    ledger = Ledger({"cpu"})
    with ledger:
        empty = torch.empty(0, 5)
    assert empty.numel() == 0
    assert ledger.events == []


def test_views_share_their_storage_and_keep_it_alive() -> None:
    ledger = Ledger({"cpu"})
    with ledger:
        base = torch.zeros(32, 32)
        views = [base[:4], base.t(), base.view(-1), base.detach(), base.expand(3, 32, 32)]
        assert ledger.events == [(0, 4096)]
        del base
        assert ledger.events == [(0, 4096)]
        views.clear()
    assert ledger.events == [(0, 4096), (0, -4096)]


def test_operator_in_place_allocates_nothing() -> None:
    ledger = Ledger({"cpu"})
    with ledger:
        tensor = torch.zeros(256)
        tensor.add_(1).mul_(2)
        torch.add(tensor, 1, out=tensor)
    assert ledger.events == [(0, 1024)]


def test_tensor_that_autograd_saves_lives_until_backward() -> None:
    ledger = Ledger({"cpu"})
    weight = torch.ones(256, requires_grad=True)
    with ledger:
        loss = weight.exp().sum()
        # exp saves its result (1024 B); the sum is a scalar.
        assert ledger.events == [(0, 1024), (1, 512)]
        loss.backward()
    assert (0, -1024) in ledger.events
    del loss
    # Only the gradient is left.
    assert live_bytes(ledger) == 1024


def test_other_devices_are_not_counted() -> None:
    ledger = Ledger({"meta"})
    with ledger:
        host = torch.ones(256)
        planned = torch.empty(512, device="meta")
    assert host.device.type == "cpu"
    assert planned.device.type == "meta"
    assert ledger.events == [(0, 2048)]


def test_two_devices_are_one_sum() -> None:
    ledger = Ledger({"cpu", "meta"})
    with ledger:
        tensors = [torch.ones(256), torch.empty(512, device="meta")]
    assert ledger.events == [(0, 1024), (1, 2048)]
    del tensors
    assert live_bytes(ledger) == 0


def test_registered_tensor_counts_from_then_on() -> None:
    weight = torch.ones(256)
    ledger = Ledger({"cpu"})
    ledger.register(weight, "weights")
    ledger.register(weight.view(16, 16), "weights")
    assert ledger.events == [(0, 1024)]
    with ledger:
        view = weight[:10]
    assert ledger.events == [(0, 1024)]
    del weight, view
    assert ledger.events == [(0, 1024), (0, -1024)]
    assert ledger.allocations[0].category == "weights"


def test_registering_names_what_was_seen_already() -> None:
    ledger = Ledger({"cpu"})
    with ledger:
        state = torch.zeros(256)
    assert ledger.allocations[0].category == ""
    ledger.register(state, "optimizer")
    assert ledger.allocations[0].category == "optimizer"
    assert len(ledger.events) == 1


def test_memory_of_a_library_is_an_allocation_without_a_tensor() -> None:
    ledger = Ledger({"cpu"})
    handle = ledger.allocate(700, "cuBLAS workspace", "workspace")
    assert ledger.events == [(handle, 1024)]
    assert ledger.allocations[handle].category == "workspace"
    assert ledger.allocations[handle].op == "cuBLAS workspace"


def test_marks_say_where_phases_begin() -> None:
    ledger = Ledger({"cpu"})
    with ledger:
        before = torch.zeros(1)
        ledger.begin_phase("forward")
        first, second = torch.zeros(1), torch.zeros(1)
        ledger.begin_phase("backward")
        third = torch.zeros(1)
    assert ledger.marks == [(1, "forward"), (3, "backward")]
    assert [allocation.phase for allocation in ledger.allocations] == [
        "build",
        "forward",
        "forward",
        "backward",
    ]
    del before, first, second, third


def test_allocation_says_where_it_was_made() -> None:
    ledger = Ledger({"cpu"})
    ledger.place = lambda: ("layers.3.mlp", "logits_loss", True)
    with ledger:
        result = torch.ones(4)
    made = ledger.allocations[0]
    assert (made.module, made.category, made.in_forward) == ("layers.3.mlp", "logits_loss", True)
    assert made.op == "aten.ones.default"
    del result


def test_meta_tensors_answer_for_masks_without_padding() -> None:
    with Ledger({"meta"}):
        assert torch.ones(3, dtype=torch.bool, device="meta").all().item() is True
        assert torch.ones(3, device="meta").sum().item() == 0


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_list_used_as_an_index_is_counted(device: str) -> None:
    table = torch.zeros(100, 64, device=device)
    ledger = Ledger({device})
    with ledger:
        rows = table[[1, 2, 3]]
    # The index of 3 x 8 B dies with the call; the result has 3 x 64 x 4 B = 768 B.
    assert sorted(size for _, size in ledger.events) == [-512, 512, 1024]
    assert rows.shape == (3, 64)


def test_decomposition_shows_its_inner_tensors() -> None:
    def relu_with_scratch(tensor: torch.Tensor) -> torch.Tensor:
        scratch = torch.zeros(1024)
        return torch.where(tensor > 0, tensor, scratch[0])

    ledger = Ledger({"cpu"}, {torch.ops.aten.relu.default: relu_with_scratch})
    values = torch.ones(256)
    with ledger:
        result = torch.relu(values)
    # 1024 x 4 B of scratch, the comparison as 256 bools, and the result.
    assert [size for _, size in ledger.events if size > 0] == [4096, 512, 1024]
    assert live_bytes(ledger) == 1024
    del result
