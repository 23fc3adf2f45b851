"""FSDP2 as accelerate prepares it: groups, mixed precision and what stays whole are its own code's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule

from qbench.errors import StepError, first_line
from qbench.scenario.distributed import DistributedSettings
from qbench.scenario.schema import Point

MIXED_PRECISION = {"none": "no", "bf16": "bf16", "fp16": "fp16"}
"""accelerate's word for each autocast of a point: Trainer's bf16 and fp16 set both."""


def refuse_unshardable(point: Point) -> None:
    """Raise StepError for what bitsandbytes, Liger and cut-cross-entropy cannot do with sharded tensors."""
    if point.precision == "int8":
        # accelerate leaves out Params4bit alone (utils/fsdp_utils.py, `fsdp2_prepare_model`).
        raise StepError("strategy fsdp2 cannot shard bitsandbytes' int8 weights; use nf4 or bf16, or ddp")
    if point.choices.loss_type in ("liger", "cut_cross_entropy", "unsloth"):
        raise StepError(
            f"loss_type {point.choices.loss_type} reads the head's weight, which strategy fsdp2 shards; "
            "use full_logits or chunked, or strategy ddp"
        )
    if point.train.optim not in ("adamw_torch", "adamw_torch_fused", "sgd"):
        raise StepError(
            f"optim {point.train.optim}: bitsandbytes' optimizers take no sharded parameters; "
            "use adamw_torch, adamw_torch_fused or sgd, or strategy ddp"
        )


def shard(model: Any, point: Point, settings: DistributedSettings, device: torch.device) -> None:
    """Shard a model in place. Raises StepError where accelerate or torch refuses to."""
    refuse_unshardable(point)
    mesh = init_device_mesh(device.type, (settings.gpus,), mesh_dim_names=("dp_shard",))
    precision = MIXED_PRECISION[point.train.autocast]
    names = settings.transformer_cls_names_to_wrap
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=settings.reshard_after_forward,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=None
        if names == "auto"
        else [part.strip() for part in names.split(",")],
        cpu_ram_efficient_loading=False,
    )
    if precision != "no":
        plugin.set_mixed_precision(precision)
    with _without_state_dict(model, device):
        try:
            fsdp2_prepare_model(_accelerator(plugin, mesh, precision, device), model)
        except (ValueError, AssertionError, NotImplementedError) as error:
            raise StepError(f"accelerate cannot shard this model: {first_line(error)}") from error


@contextlib.contextmanager
def _without_state_dict(model: Any, device: torch.device) -> Iterator[None]:
    """Keep accelerate from reading numbers on meta for a state dict that only its own loading uses."""
    if device.type != "meta":
        yield
        return
    model.state_dict = dict
    try:
        yield
    finally:
        del model.state_dict


def _accelerator(
    plugin: FullyShardedDataParallelPlugin, mesh: DeviceMesh, precision: str, device: torch.device
) -> Any:
    """Return what `fsdp2_prepare_model` reads of an Accelerator, which itself knows no meta device."""
    return SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        torch_device_mesh={("dp_shard",): mesh},
        parallelism_config=SimpleNamespace(fsdp_dim_names=["dp_shard"]),
        mixed_precision=precision,
        is_main_process=False,  # The main one would log, which needs a whole Accelerator.
        device=device,
    )


def groups_of(model: torch.nn.Module) -> list[tuple[str, FSDPModule]]:
    """Return the modules that FSDP2 gathers on their own, with their names; the root is ''."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, FSDPModule)]
