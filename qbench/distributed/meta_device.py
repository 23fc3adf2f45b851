"""What FSDP2 needs of torch to wrap meta tensors: a device whose streams have names and nothing else.

Four private names of torch are replaced while a plan runs; a test holds that they are there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.distributed.fsdp._fully_shard import _fsdp_init, _fsdp_param, _fsdp_param_group, _fully_shard

MAIN = 0
"""Number of the stream that the step itself runs on."""


class Event:
    """Marks a place on a stream; everything on meta is done at once."""

    def record(self, *_: Any) -> Event:
        """Return the event."""
        return self

    def wait(self, *_: Any) -> None:
        """Wait for nothing."""

    def synchronize(self) -> None:
        """Wait for nothing."""

    def query(self) -> bool:
        """Say that what was to be done is done."""
        return True


class Stream:
    """A stream by its number, in the order in which streams are made."""

    def __init__(self, number: int) -> None:
        self.number = number

    def wait_stream(self, stream: Stream) -> None:
        """Wait for nothing."""

    def wait_event(self, event: Event) -> None:
        """Wait for nothing."""

    def synchronize(self) -> None:
        """Wait for nothing."""

    def record_event(self, event: Event | None = None) -> Event:
        """Return an event."""
        return event or Event()


class MetaDevice:
    """Stands for meta where torch.cuda stands for cuda. `on_stream` hears of each change of stream."""

    Event = Event

    def __init__(self) -> None:
        self.main = Stream(MAIN)
        self._current = self.main
        self._num_streams = 1
        self.Stream = self._new_stream
        self.on_stream: Callable[[int], None] = lambda number: None

    def _new_stream(self, *_: Any, **__: Any) -> Stream:
        self._num_streams += 1
        return Stream(self._num_streams - 1)

    def current_stream(self, *_: Any) -> Stream:
        """Return the stream on which allocations are made now."""
        return self._current

    def current_device(self) -> int:
        """Return the only device."""
        return 0

    def device_count(self) -> int:
        """Return how many devices there are."""
        return 1

    def is_available(self) -> bool:
        """Say that there is a device."""
        return True

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        """Run what is inside on a stream."""
        before = self._current
        self._run_on(stream)
        try:
            yield
        finally:
            self._run_on(before)

    def _run_on(self, stream: Stream) -> None:
        self._current = stream
        self.on_stream(stream.number)


@contextlib.contextmanager
def meta_device() -> Iterator[MetaDevice]:
    """Let FSDP2 wrap and run meta modules."""
    device, meta = MetaDevice(), torch.device("meta")
    group: Any = _fsdp_param_group.FSDPParamGroup
    with contextlib.ExitStack() as stack:
        put = stack.enter_context
        put(mock.patch.object(torch, "meta", device, create=True))
        for module in (_fsdp_init, _fully_shard):
            put(mock.patch.object(module, "_get_device_from_mesh", return_value=meta))
        put(mock.patch.object(group, "_validate_no_meta_params"))
        # `finalize_backward` takes the stream of an all-gather that nothing used from here.
        put(mock.patch.object(torch.accelerator, "current_stream", device.current_stream))
        yield device


@contextlib.contextmanager
def watched_resizes(on_resize: Callable[[torch.UntypedStorage], None]) -> Iterator[None]:
    """Call `on_resize` after FSDP2 gives a storage memory or takes it away, which no operator announces."""

    def watched(change: Callable[[torch.Tensor], None]) -> Callable[[torch.Tensor], None]:
        def run(tensor: torch.Tensor) -> None:
            storage = tensor.untyped_storage()
            before = storage.nbytes()
            change(tensor)
            if storage.nbytes() != before:
                on_resize(storage)

        return run

    alloc, free = watched(_fsdp_param.alloc_storage), watched(_fsdp_param.free_storage)
    with (
        mock.patch.object(_fsdp_param, "alloc_storage", alloc),
        mock.patch.object(_fsdp_param, "free_storage", free),
        mock.patch.object(_fsdp_param_group, "alloc_storage", alloc),
    ):
        yield
