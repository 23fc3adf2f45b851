"""Watch a training that somebody else runs: step times, batch shapes and peaks, from the edges of its steps.

Nothing here keeps a tensor of the training alive, and nothing synchronises the device within a step.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from qbench.memory.history.breakdown import MemoryProfile, profile
from qbench.memory.history.ledger import Ledger
from qbench.memory.history.recording import NUM_STEPS, recorded
from qbench.memory.kernels.replacements import decompositions
from qbench.scenario.schema import Device
from qbench.step.optimizer import is_paged
from qbench.step.tensors import model_tensors

Shape = tuple[int, int]
"""Sequences and tokens in each of them, padding included."""


class Shapes:
    """Counts the shapes of the batches that go into a model."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.seen: Counter[Shape] = Counter()
        self.tokens = 0
        """Tokens since the start."""
        self._hook = model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        given = kwargs.get("input_ids", args[0] if args else None)
        if module.training and isinstance(given, torch.Tensor) and given.ndim == 2:
            self.seen[given.shape[0], given.shape[1]] += 1
            self.tokens += given.numel()

    @property
    def largest(self) -> Shape | None:
        """The shape with most tokens, which decides the peak; None before the first batch."""
        return max(self.seen, key=lambda shape: (shape[0] * shape[1], shape[1]), default=None)

    def detach(self) -> None:
        """Take the hook off the model."""
        self._hook.remove()


class Clock:
    """Seconds from the first edge of each step to its last: by CUDA events, or the host's clock on a CPU."""

    def __init__(self, device: Device) -> None:
        self._on_cuda = device == "cuda"
        self._edges: list[tuple[Any, Any]] = []
        self._begin: Any = None

    def begin(self) -> None:
        """Note that a step begins."""
        self._begin = self._now()

    def end(self) -> None:
        """Note that the step ends."""
        self._edges.append((self._begin, self._now()))

    def _now(self) -> Any:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> list[float]:
        """Return the seconds of each step; waits for the device."""
        if not self._on_cuda:
            return [end - begin for begin, end in self._edges]
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in self._edges]


class CudaPeaks:
    """Peaks of torch's allocator within steps; what runs between them, as evaluation does, stays out.

    The allocator's own peaks are set back at the start of each step.
    """

    def __init__(self) -> None:
        self.static_bytes = torch.cuda.memory_allocated()
        self.before_bytes = torch.cuda.max_memory_allocated()
        """Peak of loading and of all else before the training."""
        self.allocated: list[int] = []
        """Largest allocated bytes of each step."""
        self.reserved = torch.cuda.max_memory_reserved()

    def begin(self) -> None:
        """Note that a step begins."""
        torch.cuda.reset_peak_memory_stats()

    def end(self) -> None:
        """Note that the step ends."""
        self.allocated.append(torch.cuda.max_memory_allocated())
        self.reserved = max(self.reserved, torch.cuda.max_memory_reserved())


class LedgerWatch:
    """The ledger around the first steps on the CPU: exact, and slow while it runs.

    The first step makes the optimizer's state, the second runs beside it.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.on_phase: Callable[[str], None] = lambda phase: None
        self.steps = 0
        self._ledger = Ledger({"cpu"}, decompositions("cpu", on_meta=False))
        for name, category, tensor in model_tensors(model):
            self._ledger.name_place(name)
            self._ledger.register(tensor, category)
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(recorded(self, self._ledger))
        head = model.get_output_embeddings()
        if head is not None:
            self._hook(head.register_forward_pre_hook(lambda *_: self.on_phase("loss")))
        self._hook(model.register_forward_pre_hook(self._enter_forward, with_kwargs=True))
        self._hook(model.register_forward_hook(self._await_backward))

    @property
    def running(self) -> bool:
        """Whether the ledger still watches."""
        return self.steps < NUM_STEPS

    def _hook(self, handle: Any) -> None:
        self._stack.callback(handle.remove)

    def _enter_forward(self, module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor):
                self._ledger.register(value, "activations")
        self.on_phase("forward")

    def _await_backward(self, module: torch.nn.Module, args: Any, outputs: Any) -> None:
        values = outputs.values() if isinstance(outputs, dict) else vars(outputs).values()
        for value in values:
            # Which of them the trainer goes backward from is its own affair: the first that is reached tells.
            if isinstance(value, torch.Tensor) and value.requires_grad:
                value.register_hook(self._enter_backward)

    def _enter_backward(self, grad: torch.Tensor) -> None:
        if self._ledger.phase != "backward":
            self.on_phase("backward")

    def end(self, optimizer: Any) -> None:
        """Note that a step ends; after the last one that counts, the ledger is taken away."""
        for state in optimizer.state.values():
            for value in state.values():
                if isinstance(value, torch.Tensor) and not is_paged(value):
                    self._ledger.register(value, "optimizer")
        self.on_phase("between")
        self.steps += 1
        if not self.running:
            self.close()

    def close(self) -> None:
        """Take the ledger and its hooks away; closing twice does nothing."""
        self._stack.close()

    def profile(self) -> MemoryProfile | None:
        """Return what was seen; None when the training ended before."""
        return None if self.running else profile(self._ledger)
