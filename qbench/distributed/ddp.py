"""Replicas that add up their gradients: torch's DistributedDataParallel with accelerate's arguments."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import GradBucket
from torch.distributed.utils import _sync_module_states
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from qbench.scenario.distributed import DistributedSettings
from qbench.units import MIB

BROADCAST_BYTES = 250 * MIB
"""`DistributedDataParallel.__init__`, `broadcast_bucket_size`."""

InBuckets = Callable[[], contextlib.AbstractContextManager[None]]
"""Makes a context in which all that is allocated belongs to buckets of gradients."""


class Replica(DistributedDataParallel):
    """A replica that says when its reducer makes buckets."""

    def __init__(
        self,
        model: torch.nn.Module,
        settings: DistributedSettings,
        device: torch.device,
        in_buckets: InBuckets,
        on_reduced: Callable[[GradBucket], None],
    ) -> None:
        self._in_buckets = in_buckets
        self._is_meta = device.type == "meta"
        if self._is_meta:
            # The check of shapes before it reads numbers back from the device.
            assert dist.group.WORLD is not None
            _sync_module_states(model, dist.group.WORLD, BROADCAST_BYTES, 0, ())
        with in_buckets():
            super().__init__(
                model,
                device_ids=[device.index or 0] if device.type == "cuda" else None,
                bucket_cap_mb=settings.bucket_cap_mb,
                gradient_as_bucket_view=settings.gradient_as_bucket_view,
                init_sync=not self._is_meta,
            )
        if self._is_meta:
            # Work of the fake group has no result: a hook that answers the bucket stands for the all-reduce.
            self.register_comm_hook(on_reduced, _answer)

    def _pre_forward(self, *inputs: Any, **settings: Any) -> Any:
        # After the first step the reducer makes its buckets anew, in the order in which gradients came.
        with self._in_buckets(), _OrderOnHost() if self._is_meta else contextlib.nullcontext():
            return super()._pre_forward(*inputs, **settings)  # type: ignore[no-untyped-call]


def _answer(
    on_reduced: Callable[[GradBucket], None], bucket: GradBucket
) -> torch.futures.Future[torch.Tensor]:
    on_reduced(bucket)
    answered: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    answered.set_result(bucket.buffer())
    return answered


class _OrderOnHost(TorchDispatchMode):
    """Keeps the order of buckets, which the reducer sends to the device and reads back, on the host.

    Source: torch/csrc/distributed/c10d/reducer.cpp, `Reducer::sync_bucket_indices`.
    """

    _COPY = torch.ops.aten.copy_.default
    _TO = torch.ops.aten._to_copy.default

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sent: dict[torch.Size, torch.Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is self._COPY:
            to, source = args[:2]
            if source.is_cpu and to.is_meta:
                self._send(source)
            elif to.is_cpu and source.is_meta:
                return func(to, self._sent[source.shape], *args[2:], **kwargs)
        elif func is self._TO and args[0].is_cpu and _is_meta(kwargs.get("device")):
            self._send(args[0])
        elif func is self._TO and args[0].is_meta and not _is_meta(kwargs.get("device", "meta")):
            return self._sent[args[0].shape].clone()
        return func(*args, **kwargs)

    def _send(self, source: torch.Tensor) -> None:
        with _disable_current_modes():  # No ledger is to see it.
            self._sent[source.shape] = source.clone()


def _is_meta(device: Any) -> bool:
    return device is not None and torch.device(device).type == "meta"
