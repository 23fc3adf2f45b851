"""One rank's step of several GPUs: its group, the wrapped model, and what a ledger has to hear of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch._C._distributed_c10d import GradBucket
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllocMixin
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator

from qbench.distributed.collectives import Call, CollectiveLog
from qbench.distributed.ddp import Replica
from qbench.distributed.fsdp2 import shard
from qbench.distributed.group import fake_group
from qbench.distributed.meta_device import meta_device, watched_resizes
from qbench.distributed.zero import ZeroEngine
from qbench.distributed.zero_meta import deepspeed_on_meta
from qbench.errors import StepError
from qbench.memory.history.ledger import Ledger
from qbench.scenario.schema import Point
from qbench.step.shared_step import SharedStep


class Session:
    """What a ledger hears of wrappers that allocate without operators, or on other streams."""

    def __init__(self, point: Point) -> None:
        assert point.distributed is not None
        self._point, self._settings = point, point.distributed
        self._ledger: Ledger | None = None
        self._log: CollectiveLog | None = None

    def attach(self, ledger: Ledger) -> None:
        """Tell this ledger from now on, and take down its collectives."""
        ledger.sharded = DTensor
        self._ledger = ledger
        self._log = CollectiveLog(ledger, reduces_each_pass=self._settings.strategy in ("zero2", "zero3"))
        ledger.on_collective = self._log.note

    @property
    def shards(self) -> bool:
        """Whether weights are sharded once the model is whole."""
        return self._settings.strategy in ("fsdp2", "zero3")

    @property
    def collectives(self) -> list[Call]:
        """The collectives of all steps."""
        return [] if self._log is None else self._log.calls

    def share(self, model: Any, device: torch.device) -> SharedStep:
        """Wrap a model as the point's strategy does; return how a step runs it."""
        if self._settings.strategy == "fsdp2":
            shard(model, self._point, self._settings, device)
            return SharedStep(lambda optimizer: model, self._settings.gpus, _no_sync_of(model))
        if self._settings.strategy == "ddp":
            replicas: list[Replica] = []

            def replica(optimizer: torch.optim.Optimizer) -> Replica:
                in_buckets = self._in("buckets")
                replicas.append(Replica(model, self._settings, device, in_buckets, self._on_reduced))
                return replicas[0]

            return SharedStep(replica, self._settings.gpus, lambda: replicas[0].no_sync())
        if self._settings.strategy.startswith("zero"):
            engine = ZeroEngine(model, self._point, self._settings)
            return SharedStep(
                lambda optimizer: engine.start(optimizer, self._ledger),
                self._settings.gpus,
                engine.no_sync,
                engine,
            )
        raise StepError(f"strategy {self._settings.strategy} is not planned")

    def on_made(self, tensor: torch.Tensor) -> None:
        """Hear of a tensor that no operator announces."""
        if self._ledger is not None and not self._ledger.paused:
            self._ledger.register(tensor, "")

    def on_stream(self, number: int) -> None:
        """Hear that allocations are made on another stream from now on."""
        if self._ledger is not None:
            self._ledger.stream = number

    def on_resize(self, storage: torch.UntypedStorage) -> None:
        """Hear that FSDP2 gave a gathered parameter memory, or took it away."""
        if self._ledger is not None:
            self._ledger.resized(storage, "fsdp.alloc_storage", "gathered")

    def _on_reduced(self, bucket: GradBucket) -> None:
        if self._log is not None:
            self._log.add("all_reduce", bucket.buffer().nbytes, f"bucket {bucket.index()}")

    def _of_group(self, method: Callable[..., None]) -> Callable[..., None]:
        """Return a method of FSDP2's groups that says which one's collectives run inside."""

        def run(group: Any, *arguments: Any, **settings: Any) -> None:
            if self._log is None:
                return method(group, *arguments, **settings)
            self._log.group = group._module_fqn or "root"
            try:
                return method(group, *arguments, **settings)
            finally:
                self._log.group = ""

        return run

    def pause(self, is_paused: bool) -> None:
        """Take nothing down until this is called again."""
        if self._ledger is not None:
            self._ledger.paused = is_paused

    def _in(self, category: str) -> Callable[[], contextlib.AbstractContextManager[None]]:
        @contextlib.contextmanager
        def context() -> Iterator[None]:
            ledger = self._ledger
            if ledger is None:
                yield
                return
            place = ledger.place

            def placed() -> tuple[str, str, bool]:
                return place()[0], category, False

            ledger.place = placed
            try:
                yield
            finally:
                ledger.place = place

        return context

    def putting(self, category: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Return what wraps a function whose allocations belong to a category."""
        within = self._in(category)

        def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
            def run(*arguments: Any, **settings: Any) -> Any:
                with within():
                    return function(*arguments, **settings)

            return run

        return wrapped

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Hear of what FSDP2 does inside."""
        allocated = self.putting("communication")(DefaultAllocMixin.allocate)
        gathered = self.putting("gathered")(DTensor.full_tensor)
        with (
            watched_resizes(self.on_resize),
            mock.patch.object(DTensor, "full_tensor", gathered),
            mock.patch.object(FSDPParamGroup, "unshard", self._of_group(FSDPParamGroup.unshard)),
            mock.patch.object(FSDPParamGroup, "post_backward", self._of_group(FSDPParamGroup.post_backward)),
            mock.patch.object(DefaultAllocMixin, "allocate", allocated),
            # Results' shapes are worked out on fake tensors, within this context.
            mock.patch.object(ShardingPropagator, "_fake_mode_lock", _Pause(self)),
        ):
            yield


class _Pause:
    """A context in which the session's ledger takes nothing down."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __enter__(self) -> None:
        self._session.pause(True)

    def __exit__(self, *_: object) -> None:
        self._session.pause(False)


def _no_sync_of(model: Any) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Return accelerate's `no_sync` of a model that FSDP2 has sharded (accelerator.py, `no_sync`)."""

    @contextlib.contextmanager
    def no_sync() -> Iterator[None]:
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)

    return no_sync


@contextlib.contextmanager
def planned_session(point: Point, rank: int, kernels: str) -> Iterator[Session]:
    """Be one rank of a point's GPUs on meta, where nothing is sent. Raises StepError as `fake_group`."""
    assert point.distributed is not None
    session, gpus = Session(point), point.distributed.gpus
    with contextlib.ExitStack() as stack:
        stack.enter_context(fake_group(rank, gpus))
        device = stack.enter_context(meta_device())
        if point.distributed.strategy.startswith("zero"):
            streams = kernels == "cuda"
            stack.enter_context(
                deepspeed_on_meta(
                    device, rank, gpus, session.on_made, session.putting("gathered"), has_streams=streams
                )
            )
        stack.enter_context(session.watched())
        device.on_stream = session.on_stream
        yield session


@contextlib.contextmanager
def real_session(point: Point) -> Iterator[Session]:
    """Be the rank of a point's GPUs that this process has in the group that it has joined."""
    session = Session(point)
    with session.watched():
        yield session
