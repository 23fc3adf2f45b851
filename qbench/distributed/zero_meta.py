"""What DeepSpeed needs to run on meta tensors: an accelerator whose device is meta, and answers to what it
asks other ranks.

It keeps process groups and its accelerator in global variables, which are as before once a plan is made.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import _disable_current_modes

from qbench.distributed.meta_device import MetaDevice
from qbench.distributed.zero import installed_deepspeed

Method = Callable[..., Any]


@contextlib.contextmanager
def deepspeed_on_meta(
    device: MetaDevice,
    rank: int,
    gpus: int,
    on_made: Callable[[torch.Tensor], None],
    gathering: Callable[[Method], Method],
    *,
    has_streams: bool,
) -> Iterator[None]:
    """Let DeepSpeed's engine run on meta as one rank; without streams it is the CPU's.

    `on_made` is given each tensor made of numbers, which no operator announces there; `gathering` wraps the
    method that gathers weights.
    """
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": gpus, "MASTER_PORT": 29500}
    environment = {name: str(value) for name, value in names.items()}
    with contextlib.ExitStack() as stack:
        put = stack.enter_context
        put(mock.patch.dict(os.environ, environment | {"MASTER_ADDR": "localhost", "DS_ACCELERATOR": "cpu"}))
        deepspeed = installed_deepspeed()
        from deepspeed.accelerator import real_accelerator
        from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
        from deepspeed.runtime.zero import linear
        from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

        accelerator = _accelerator(device, has_streams)
        put(mock.patch.object(real_accelerator, "ds_accelerator", accelerator))
        put(_globals_kept(deepspeed.utils.groups))
        put(_globals_kept(deepspeed.comm.comm))
        deepspeed.comm.comm.cdb = None
        for module in [each for name, each in sys.modules.items() if name.startswith("deepspeed")]:
            if hasattr(module, "assert_ints_same_as_other_ranks"):
                put(mock.patch.object(module, "assert_ints_same_as_other_ranks", _agreed))
            if hasattr(module, "defragment"):
                put(mock.patch.object(module, "defragment", partial(_joined, first=not has_streams)))
        coordinator = PartitionedParameterCoordinator
        put(mock.patch.object(coordinator, "fetch_sub_module", gathering(coordinator.fetch_sub_module)))
        # Nothing is sent, so no operator has to be compiled for it.
        put(mock.patch.object(sys.modules["deepspeed.comm.torch"], "build_shm_op", return_value=None))
        # torch's autocast knows no meta device; DeepSpeed's engine runs without it.
        put(mock.patch.object(linear, "get_accelerator", CPU_Accelerator))
        put(mock.patch.object(torch.nn.functional, "linear", torch.nn.functional.linear))
        put(mock.patch.object(torch.Tensor, "record_stream"))
        put(mock.patch.object(torch.Tensor, "cpu", _as_it_is))
        put(mock.patch.object(torch, "zeros_like", _zeros_like))
        put(mock.patch.object(torch, "tensor", _seen(torch.tensor, on_made)))
        yield


def _seen(
    make: Callable[..., torch.Tensor], on_made: Callable[[torch.Tensor], None]
) -> Callable[..., torch.Tensor]:
    def tensor(*values: Any, **settings: Any) -> torch.Tensor:
        made = make(*values, **settings)
        if made.is_meta:
            on_made(made)
        return made

    return tensor


def _agreed(ints: list[int]) -> None:
    """Do as DeepSpeed does to compare numbers with rank 0's, which are the same.

    Source: deepspeed/runtime/zero/utils.py, `assert_ints_same_as_other_ranks`.
    """
    torch.tensor(len(ints), dtype=torch.int64, device="meta")
    torch.tensor(ints, dtype=torch.int64, device="meta")


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose numbers are on the host, where they take no memory of a GPU."""
    return tensor


def _zeros_like(tensor: torch.Tensor, **settings: Any) -> torch.Tensor:
    """Return torch's; what DeepSpeed itself makes on meta takes no memory anywhere."""
    made_by = torch._C._VariableFunctions.zeros_like
    with _disable_current_modes() if settings.get("device") == "meta" else contextlib.nullcontext():
        zeros: torch.Tensor = made_by(tensor, **settings)
    return zeros


def _joined(tensors: list[torch.Tensor], first: bool) -> torch.Tensor:
    """Return one buffer with all tensors in it, as they are from now on: made `first`, or when they are gone.

    Source: deepspeed/runtime/zero/utils.py, `defragment`, whose first buffer is on the host.
    """
    sizes, like = [tensor.numel() for tensor in tensors], tensors[0]
    made = [torch.empty(sum(sizes), dtype=like.dtype, device=like.device)] if first else []
    for tensor in tensors:
        tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    if not first:
        made = [torch.empty(sum(sizes), dtype=like.dtype, device=like.device)]
    for tensor, part in zip(tensors, made[0].split(sizes), strict=True):
        tensor.data = part
    return made[0]


@contextlib.contextmanager
def _globals_kept(module: Any) -> Iterator[None]:
    before = dict(vars(module))
    try:
        yield
    finally:
        vars(module).update(before)


def _accelerator(device: MetaDevice, has_streams: bool) -> Any:
    """Return an accelerator whose tensors are on meta; its streams, if any, are the device's."""
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    def numbers(dtype: torch.dtype) -> Callable[[Any], torch.Tensor]:
        return lambda values: torch.tensor(values, dtype=dtype, device="meta")

    answers: dict[str, Any] = {
        "is_synchronized_device": lambda _: not has_streams,
        "device_name": lambda _, index=None: "meta",
        "current_device": lambda _: 0,
        "current_device_name": lambda _: "meta",
        "device_count": lambda _: 1,
        "on_accelerator": lambda _, tensor: tensor.is_meta,
        "FloatTensor": property(lambda _: numbers(torch.float32)),
        "ByteTensor": property(lambda _: numbers(torch.uint8)),
        "Stream": property(lambda _: device.Stream if has_streams else None),
        "Event": property(lambda _: device.Event if has_streams else None),
        "stream": lambda _, stream: contextlib.nullcontext() if stream is None else device.stream(stream),
        "current_stream": lambda _, index=None: device.current_stream() if has_streams else None,
        "default_stream": lambda _, index=None: device.main if has_streams else None,
    }
    return type("MetaAccelerator", (CPU_Accelerator,), answers)()
