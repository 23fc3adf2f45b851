"""Where an allocation was made, in forward, in backward, in recomputation and in the loss."""

from __future__ import annotations

import torch
from torch.utils.checkpoint import checkpoint

from qbench.memory.history.attribution import Attribution
from qbench.memory.history.ledger import Allocation, Ledger


class Layer(torch.nn.Module):
    """Two modules that each save a tensor for backward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)
        self.act = torch.nn.SiLU()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.act(self.linear(hidden))


class Model(torch.nn.Module):
    """Two layers and a head."""

    def __init__(self, checkpointing: bool = False) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([Layer(), Layer()])
        self.head = torch.nn.Linear(8, 8)
        self.checkpointing = checkpointing

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden = checkpoint(layer, hidden, use_reentrant=False) if self.checkpointing else layer(hidden)
        return self.head(hidden)


def step(model: Model) -> tuple[list[Allocation], Attribution]:
    """Return what one forward and backward allocated; the loss begins where the head does."""
    ledger = Ledger({"cpu"})

    def begin_loss(module: torch.nn.Module, args: object) -> None:
        attribution.in_loss = True
        ledger.begin_phase("loss")

    model.head.register_forward_pre_hook(begin_loss)
    attribution = Attribution(model)

    def place() -> tuple[str, str, bool]:
        module, in_loss, in_forward = attribution.place()
        return module, ("logits_loss" if in_loss else ""), in_forward

    ledger.place = place
    batch = torch.ones(4, 8)
    with ledger:
        ledger.begin_phase("forward")
        loss = model(batch).exp().sum()
        attribution.in_loss = False
        ledger.begin_phase("backward")
        loss.backward()
    return ledger.allocations, attribution


def modules_of(allocations: list[Allocation], phase: str, in_forward: bool, category: str = "") -> list[str]:
    """Return the modules of a phase in the order of their first allocation."""
    found = [
        allocation.module
        for allocation in allocations
        if (allocation.phase, allocation.in_forward, allocation.category) == (phase, in_forward, category)
    ]
    return list(dict.fromkeys(found))


LEAVES = ["layers.0.linear", "layers.0.act", "layers.1.linear", "layers.1.act"]


def test_forward_knows_the_innermost_module() -> None:
    allocations, _ = step(Model())
    assert modules_of(allocations, "forward", in_forward=True) == LEAVES


def test_backward_visits_the_modules_in_reverse() -> None:
    allocations, _ = step(Model())
    assert modules_of(allocations, "backward", in_forward=False) == LEAVES[::-1]


def test_recomputation_is_a_forward_inside_backward() -> None:
    allocations, attribution = step(Model(checkpointing=True))
    recomputed = modules_of(allocations, "backward", in_forward=True)
    # The last layer comes first. Each stops before its activation runs: all that it saves is there by then.
    assert [name for name in recomputed if name] == ["layers.1.linear", "layers.0.linear"]
    assert modules_of(allocations, "backward", in_forward=False) == LEAVES[::-1]
    assert attribution.place() == ("", False, True)


def test_head_and_loss_are_told_apart_in_forward_and_in_backward() -> None:
    allocations, _ = step(Model())
    assert modules_of(allocations, "loss", in_forward=True, category="logits_loss") == ["head", ""]
    # The gradient of the exponential first, then those of the head.
    assert modules_of(allocations, "backward", in_forward=False, category="logits_loss") == ["", "head"]


def test_detach_leaves_no_hook() -> None:
    model = Model()
    attribution = Attribution(model)
    attribution.detach()
    model(torch.ones(1, 8))
    assert attribution.place() == ("", False, True)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
