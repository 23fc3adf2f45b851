"""Where torch adds in place although the ledger watches, as it does when nothing watches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from qbench.memory.history.ledger import Ledger
from qbench.memory.kernels.autocast import meta_autocast
from qbench.memory.kernels.choices import Card
from qbench.memory.kernels.replacements import decompositions, kernels_of


def made(ledger: Ledger, op: str) -> int:
    """Return how many tensors an operator made."""
    return sum(allocation.op == op for allocation in ledger.allocations)


def backward_of(function: Callable[[torch.Tensor], torch.Tensor], device: str) -> tuple[Ledger, torch.Tensor]:
    """Return the ledger of a backward pass alone, and the gradient."""
    torch.manual_seed(0)
    leaf = torch.rand(8, 8, device=device, requires_grad=True)
    # Multiplied, so that the gradient that comes first fills its memory, where that of a sum is spread.
    loss = (function(leaf * 1) * torch.ones(8, 8, device=device)).sum()
    ledger = Ledger({device})
    with ledger:
        loss.backward()
    assert leaf.grad is not None
    return ledger, leaf.grad


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sin() + x.cos() + x.exp(),
        # The gradient of a sum goes to both of its terms; the one that comes back last holds it alone.
        lambda x: x + x.exp(),
        lambda x: x @ x.exp() + x.sin(),
    ],
)
def test_gradients_that_meet_are_summed_up_in_the_first(
    device: str, function: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    ledger, _ = backward_of(function, device)
    assert made(ledger, "aten.add.Tensor") == 0


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_gradient_that_does_not_fill_its_memory_is_left_alone(device: str) -> None:
    # The gradient of a sum is a view of what it was spread from, which does not fill its memory.
    leaf = torch.rand(8, 8, device=device, requires_grad=True)
    middle = leaf * 1
    loss = (middle + middle.exp()).sum()
    ledger = Ledger({device})
    with ledger:
        loss.backward()
    assert made(ledger, "aten.add.Tensor") == 1


def test_the_gradient_is_that_of_an_unwatched_pass() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return (x.sin() + x) * x.exp() + x.t() @ x

    torch.manual_seed(0)
    leaf = torch.rand(8, 8, requires_grad=True)
    (function(leaf * 1) * torch.ones(8, 8)).sum().backward()
    assert leaf.grad is not None
    assert torch.equal(backward_of(function, "cpu")[1], leaf.grad)


def test_sums_of_python_code_within_backward_stay_new_tensors() -> None:
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad + grad

    ledger, _ = backward_of(lambda x: Twice.apply(x), "meta")
    assert made(ledger, "aten.add.Tensor") == 1


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_scores_take_the_mask_in_place(device: str) -> None:
    query = torch.rand(1, 2, 16, 8, dtype=torch.float64, device=device)
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.float64, device=device)
    ledger = Ledger({device}, decompositions("cpu", device == "meta"))
    with kernels_of("cpu"), ledger, torch.no_grad():
        attention = torch.nn.functional.scaled_dot_product_attention
        # Grouped heads leave the CPU's fused kernel aside.
        attention(query, query[:, :1], query[:, :1], attn_mask=mask, enable_gqa=True)
    assert made(ledger, "aten.add.Tensor") == 0


def test_autocast_of_meta_does_not_hide_who_adds() -> None:
    query = torch.rand(1, 2, 16, 8, dtype=torch.bfloat16, device="meta")
    card = Card(capability=(7, 5))
    ledger = Ledger({"meta"}, decompositions("cuda", True, card))
    with kernels_of("cuda", card), ledger, torch.no_grad(), meta_autocast("cuda", torch.bfloat16):
        # A T4 has no fused kernel for bf16, and scores take the causal mask.
        torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
    assert made(ledger, "aten.add.Tensor") == 0
