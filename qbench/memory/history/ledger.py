"""The ledger of live tensor storages: every allocation and free, in order.

A `TorchDispatchMode` sees each operator's outputs; a weak reference on each storage tells when it dies.
It works alike on meta tensors (the plan) and on real CPU tensors (the ground truth).
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qbench.errors import StepError
from qbench.memory.history.additions import adds_in_place, put_in_place
from qbench.memory.kernels.known_values import KnownValues, is_on_host
from qbench.memory.kernels.meta_cache import MetaKernelCache
from qbench.memory.kernels.replacements import Decompositions
from qbench.units import round_up

BLOCK_BYTES = 512
"""Allocations are multiples of this: `kMinBlockSize` of c10/cuda/CUDACachingAllocator.cpp."""

EMPTY_CACHE = "empty_cache"
"""Name of a mark at which the program empties the allocator's cache; another phase begins at once."""

_INDEX = torch.ops.aten.index.Tensor
_INDEXED = frozenset((_INDEX, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default))
_SCALAR = torch.ops.aten._local_scalar_dense.default
_ADD = torch.ops.aten.add.Tensor
_ADD_IN_PLACE = torch.ops.aten.add_.Tensor

_CUBLAS = frozenset(
    {getattr(torch.ops.aten, name).default for name in ("mm", "addmm", "bmm", "baddbmm", "linear")}
    | {torch.ops.aten.mm.out}
)
"""Operators that run through a cuBLAS handle, which takes its workspace when it is first used."""

_COLLECTIVE = ("c10d", "_c10d_functional")
"""Namespaces of collectives."""

_META_KERNELS = MetaKernelCache()
"""Shared by all ledgers of a process, so that a sweep pays for each shape once."""

MOST_ALLOCATIONS = 250_000
"""Of a recording on meta: some ten seconds."""


class TooLongError(StepError):
    """A step of more operators than a plan can follow."""

    def __init__(self) -> None:
        super().__init__(
            f"two steps make more than {MOST_ALLOCATIONS:,} tensors, by their layers or a loop over tokens, "
            "which is more than a plan follows; use a shorter seq_len or fewer layers"
        )


Place = tuple[str, str, bool]
"""Module path, category where the place alone decides it (else empty), inside a forward pass."""


class History(Protocol):
    """What happened to memory, in order: what a ledger has seen, or what was worked out from it."""

    @property
    def allocations(self) -> list[Allocation]:
        """What each handle is."""

    @property
    def events(self) -> list[tuple[int, int]]:
        """(handle, bytes), negative on a free."""

    @property
    def marks(self) -> list[tuple[int, str]]:
        """(number of its first event, name) of each phase."""


def emptied_at(marks: Iterable[tuple[int, str]]) -> frozenset[int]:
    """Return the numbers of the events before which the program empties the allocator's cache."""
    return frozenset(event for event, name in marks if name == EMPTY_CACHE)


class CostNotes(Protocol):
    """What takes down the cost of each operator, where that is asked for (`costs.CostLog`)."""

    @property
    def num_entries(self) -> int:
        """Operators noted so far."""

    def note(self, ledger: Any, func: Any, args: Any, kwargs: Any, out: Any, key: Hashable) -> None:
        """Take down one operator that ran; calls of one key, unless it is None, cost the same."""

    def note_opened(self, ledger: Any, start: int, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Take down what the function put in an operator's place does not show."""


@dataclass(slots=True)
class Allocation:
    """One storage: how large, where it was made, and what it is."""

    num_bytes: int
    """Bytes as requested, before rounding."""
    phase: str
    op: str
    module: str
    category: str
    """A category of the breakdown, or empty while only its lifetime can tell."""
    in_forward: bool
    """Made by a forward pass or by its recomputation."""
    stream: int = 0
    """Number of the stream that it was made on; the allocator keeps a pool for each."""


class _StorageRef(weakref.ref):  # type: ignore[type-arg]
    """A weak reference that knows which allocation its storage is."""

    __slots__ = ("handle", "key")

    handle: int
    key: int


_name = functools.cache(str)


def _nowhere() -> Place:
    return "", "", False


class Ledger(TorchDispatchMode):
    """Counts the storages of the watched device types that are alive.

    `events` is the history as (handle, bytes): positive when storage `handle` is allocated, negative when
    it is freed, rounded up to 512 B. `allocations[handle]` says what it is. `marks` holds the event number
    at which each phase began.
    """

    def __init__(self, device_types: Iterable[str], decompositions: Decompositions | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device_types = frozenset(device_types)
        self._on_meta = "meta" in self._device_types
        self._decompositions = decompositions or {}
        self._live: dict[int, _StorageRef] = {}
        self.place: Callable[[], Place] = _nowhere
        self.allocations: list[Allocation] = []
        self.events: list[tuple[int, int]] = []
        self.marks: list[tuple[int, str]] = []
        self.phase = "build"
        self.stream = 0
        self.sharded: type | None = None
        """Tensors that hold a shard (DTensor), where there may be any: they run their operators on it."""
        self.paused = False
        """Whether what runs is none of the step, as where sharded tensors work out a result's shape."""
        self.values: KnownValues | None = None
        """What is known of values on meta; None where no model asks for them."""
        self.costs: CostNotes | None = None
        self.on_collective: Callable[[Any, Any, Any], None] | None = None
        """Hears of each operator of torch.distributed, its arguments and its result."""
        self.times = 1
        """How many micro-batches the one that runs stands for."""
        self.workspaces: dict[str, int] = {}
        """Bytes that the cuBLAS handle of a thread will take, by the phase that runs there: forward is the
        caller's thread, backward autograd's."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Spare each operator the switching of torch.compile, which does not run here."""
        return False

    def begin_phase(self, phase: str) -> None:
        """Note that a phase begins with the next event; one that has begun goes on."""
        if phase == self.phase:
            return
        self.phase = phase
        self.marks.append((len(self.events), phase))

    def empty_cache(self) -> None:
        """Note that the program empties the allocator's cache (torch.cuda.empty_cache)."""
        self.marks.append((len(self.events), EMPTY_CACHE))

    def name_place(self, name: str) -> None:
        """Give what is recorded next the place `name`, where no module runs that could be asked."""
        self.place = lambda: (name, "", False)

    def register(self, tensor: torch.Tensor, category: str) -> None:
        """Count a tensor that may exist already, and give its storage a category."""
        handle = self._track(tensor, "")
        if handle is not None:
            self.allocations[handle].category = category

    def announce(self, tensor: torch.Tensor) -> None:
        """Count a new tensor that no operator shows, as one of Python's numbers on meta."""
        self._track(tensor, torch.ops.aten.lift_fresh.default)

    def handle(self, tensor: torch.Tensor) -> int | None:
        """Return the handle of a tensor's storage, None where it is not known."""
        known = self._live.get(tensor.untyped_storage()._cdata)
        return None if known is None else known.handle

    def resized(self, storage: torch.UntypedStorage, op: str, category: str) -> None:
        """Record that a storage was given memory, or lost what it had, without an operator."""
        known = self._live.pop(storage._cdata, None)
        if known is not None:
            self.note(known.handle, -self._size(known.handle))
        if storage.nbytes():
            self._begin_life(storage, op, category)

    def allocate(self, num_bytes: int, op: str, category: str, parts: Mapping[str, int] | None = None) -> int:
        """Record memory that a library holds out of sight of the dispatcher; return its handle.

        `parts` says, for memory that is a sum over parameters, the bytes of each by its name.
        """
        handle = len(self.allocations)
        self.allocations.append(Allocation(num_bytes, self.phase, op, self.place()[0], category, False))
        self.note(handle, round_up(num_bytes, BLOCK_BYTES))
        return handle

    def free(self, handle: int) -> None:
        """Record that what `allocate` gave is free again."""
        self.note(handle, -self._size(handle))

    def note(self, handle: int, size: int) -> None:
        """Take down one event; memory of no bytes has none, as an allocator is not asked for it."""
        if size:
            self.events.append((handle, size))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.sharded is not None and (
            self.paused or any(issubclass(each, self.sharded) for each in types)
        ):
            return func(*args, **kwargs) if self.paused else NotImplemented
        if self.values is not None and self._on_meta:
            return self._run_with_values(self.values, func, args, kwargs)
        return self._run_counted(func, args, kwargs)

    def _run_with_values(self, values: KnownValues, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator on meta as one does that knows some values, and take down what it did to them."""
        if is_on_host(args):
            out = func(*args, **kwargs)
            self._track_all(out, func)
            return out
        answer = values.answer(func, args, kwargs)
        if answer is not NotImplemented:
            self._track_all(answer, func)
            return answer
        if func in _INDEXED:
            args = (args[0], values.positions(args[1]), *args[2:])
        out = self._run_counted(func, args, kwargs)
        values.follow(func, args, kwargs, out)
        return out

    def _run_counted(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func is _SCALAR and args[0].device.type == "meta":
            # transformers' mask helpers ask whether a mask is all true; the batches here have no padding.
            # DeepSpeed asks before an update whether gradients overflow; they do not.
            return self.phase != "optimizer" if args[0].dtype == torch.bool else 0
        if func is _INDEX:
            # Python lists used as an index become tensors of the device, which on meta no operator announces.
            self._track_all(args[1], func)
        if func is _ADD and adds_in_place(args[0], args[1]):
            func = _ADD_IN_PLACE
        func = put_in_place(func, args)
        decomposition = self._decompositions.get(func)
        order = decomposition if isinstance(decomposition, tuple) else None
        if callable(decomposition):
            opened = self._run_opened(decomposition, func, args, kwargs)
            if opened is not NotImplemented:
                if self.workspaces and func in _CUBLAS:
                    self._take_workspace()
                return opened
        out, key = self._run(func, args, kwargs)
        self._track_all(out if order is None else [out[place] for place in order], func)
        self._note_cost(func, args, kwargs, out, key)
        if self.workspaces and func in _CUBLAS:
            self._take_workspace()
        return out

    def _note_cost(self, func: Any, args: Any, kwargs: Any, out: Any, key: Hashable) -> None:
        if self.on_collective is not None and func.namespace in _COLLECTIVE:
            self.on_collective(func, args, out)
        elif self.costs is not None:
            self.costs.note(self, func, args, kwargs, out, key)

    def _run_opened(self, replacement: Callable[..., Any], func: Any, args: Any, kwargs: Any) -> Any:
        start = 0 if self.costs is None else self.costs.num_entries
        with self:
            out = replacement(*args, **kwargs)
        if self.costs is not None and out is not NotImplemented:
            self.costs.note_opened(self, start, func, args, kwargs, out)
        return out

    def _take_workspace(self) -> None:
        num_bytes = self.workspaces.pop("backward" if self.phase == "backward" else "forward", None)
        if num_bytes is not None:
            self.allocate(num_bytes, "cuBLAS workspace", "workspace")

    def _run(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, Hashable]:
        return _META_KERNELS.call(func, args, kwargs) if self._on_meta else (func(*args, **kwargs), None)

    def _track_all(self, out: Any, func: Any) -> None:
        if isinstance(out, torch.Tensor):
            self._track(out, func)
        elif isinstance(out, (tuple, list)):
            for item in out:
                self._track_all(item, func)

    def _track(self, tensor: torch.Tensor, func: Any) -> int | None:
        if self.sharded is not None and isinstance(tensor, self.sharded):
            shard: Any = tensor
            tensor = shard._local_tensor
        if not (self._on_meta and tensor.is_meta) and tensor.device.type not in self._device_types:
            return None
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._live.get(key)
        if known is not None:
            return known.handle
        return self._begin_life(storage, _name(func)) if storage.nbytes() else None

    def _begin_life(self, storage: torch.UntypedStorage, op: str, category: str = "") -> int:
        handle = len(self.allocations)
        module, usual, in_forward = self.place()
        asked, category = storage.nbytes(), category or usual
        self.allocations.append(Allocation(asked, self.phase, op, module, category, in_forward, self.stream))
        reference = _StorageRef(storage, self._freed)
        reference.handle, reference.key = handle, storage._cdata
        self._live[reference.key] = reference
        self.note(handle, self._size(handle))
        if handle >= MOST_ALLOCATIONS and self._on_meta:
            raise TooLongError
        return handle

    def _size(self, handle: int) -> int:
        return round_up(self.allocations[handle].num_bytes, BLOCK_BYTES)

    def _freed(self, reference: Any) -> None:
        del self._live[reference.key]
        self.note(reference.handle, -self._size(reference.handle))
