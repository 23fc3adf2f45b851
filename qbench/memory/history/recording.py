"""Run training steps under the ledger: the one way in which plan and CPU engine count memory."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from qbench.memory.history.attribution import Attribution
from qbench.memory.history.ledger import Ledger, Place
from qbench.memory.kernels.choices import Card
from qbench.memory.kernels.known_values import KnownValues, Literals
from qbench.memory.kernels.replacements import decompositions
from qbench.memory.work.log import CostLog

NUM_STEPS = 2
"""The second step runs with the optimizer's state in place and, in a hand-written loop, the old outputs."""


class Watched(Protocol):
    """What the ledger needs of whoever runs the steps."""

    model: Any
    on_phase: Callable[[str], None]


class Steps(Watched, Protocol):
    """What a recording needs of a training step."""

    on_times: Callable[[int], None]

    def run(self) -> torch.Tensor:
        """Make one optimizer step."""

    def static_tensors(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """Yield (name, category, tensor) of what is in memory before the first step."""

    def optimizer_tensors(self) -> Iterator[torch.Tensor]:
        """Yield the tensors of the optimizer's state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """The ledger of some steps, and the loss of each."""

    ledger: Ledger
    losses: list[float]


def record_steps(
    step: Steps,
    device_types: set[str],
    kernels: str,
    library_buffers: dict[str, int] | None = None,
    load: Callable[[Ledger], None] | None = None,
    num_steps: int = NUM_STEPS,
    ledger_type: type[Ledger] = Ledger,
    card: Card | None = None,
    costs: CostLog | None = None,
    known: Iterable[tuple[torch.Tensor, torch.Tensor]] = (),
) -> Recording:
    """Return the recording of `num_steps` steps of a freshly built training step; the step stays usable.

    `kernels` is the device whose kernels are meant (cuda or cpu). `library_buffers` gives the bytes that
    cuBLAS takes and keeps at the first matrix product of a thread (`Ledger.workspaces`). `load` tells the
    ledger how the model came into memory; without it, it was there. `card` is the one to run on, for CUDA.
    `costs` takes down what the last step's operators cost. `known` are tensors on meta with their values, on
    the CPU, where the model asks for them.
    """
    ledger = ledger_type(device_types, decompositions(kernels, "meta" in device_types, card))
    ledger.workspaces = dict(library_buffers or {})
    if load is not None:
        load(ledger)
    for name, category, tensor in step.static_tensors():
        ledger.name_place(name)
        ledger.register(tensor, category)
    for tensor, values in known:
        ledger.values = ledger.values or KnownValues()
        ledger.values.learn(tensor, values)

    def begin_repeated(times: int) -> None:
        ledger.times = times
        if costs is not None:
            costs.begin_repeated(times)

    step.on_times = begin_repeated
    losses: list[float] = []
    with recorded(step, ledger):
        for index in range(num_steps):
            ledger.costs = costs if index == num_steps - 1 else None
            losses.append(step.run().item())
            for tensor in step.optimizer_tensors():
                ledger.register(tensor, "optimizer")
    return Recording(ledger=ledger, losses=losses)


@contextlib.contextmanager
def recorded(step: Watched, ledger: Ledger) -> Iterator[None]:
    """Let the ledger see all that runs inside, with phase, module and category of each allocation."""
    literals = contextlib.nullcontext() if ledger.values is None else Literals(ledger.values, ledger.announce)
    with _watching(step, ledger), without_gc(), literals, ledger:
        yield


@contextlib.contextmanager
def _watching(step: Watched, ledger: Ledger) -> Iterator[None]:
    """Hold the hooks that tell the ledger the phase, the module and the gradients."""
    attribution = Attribution(step.model)
    hooks = [] if ledger.sharded is not None else _mark_gradients(ledger, step.model)
    before = step.on_phase
    ledger.place = _places(attribution)
    step.on_phase = _phases(ledger, attribution, before)
    if ledger.sharded is not None:
        step.on_phase = _marking_gradients(ledger, step.model, step.on_phase)
    try:
        yield
    finally:
        step.on_phase = before
        attribution.detach()
        for hook in hooks:
            hook.remove()


def _places(attribution: Attribution) -> Callable[[], Place]:
    def place() -> Place:
        module, in_loss, in_forward = attribution.place()
        return module, ("logits_loss" if in_loss else ""), in_forward

    return place


def _phases(ledger: Ledger, attribution: Attribution, also: Callable[[str], None]) -> Callable[[str], None]:
    def begin(phase: str) -> None:
        also(phase)
        attribution.in_loss = phase == "loss"
        ledger.begin_phase(phase)

    return begin


def _marking_gradients(
    ledger: Ledger, model: torch.nn.Module, then: Callable[[str], None]
) -> Callable[[str], None]:
    """Return a callback that gives gradients their category once backward has ended.

    FSDP2 puts sharded gradients in their places itself, so that hooks of parameters do not hear of them.
    """

    def begin(phase: str) -> None:
        if phase == "optimizer":
            for parameter in model.parameters():
                if parameter.grad is not None:
                    ledger.register(parameter.grad, "gradients")
        then(phase)

    return begin


def _mark_gradients(ledger: Ledger, model: torch.nn.Module) -> list[Any]:
    """Give gradients their category as backward makes them; return the hooks."""

    def mark(parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            ledger.register(parameter.grad, "gradients")

    trainable = (parameter for parameter in model.parameters() if parameter.requires_grad)
    return [parameter.register_post_accumulate_grad_hook(mark) for parameter in trainable]


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """Let frees follow reference counts alone: a collection at a random moment would move them.

    It would also go through all objects of the libraries, which takes longer than a trace.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
