"""All fused kernels of a point's layers, put in place in the order that matters: the last one wins."""

from __future__ import annotations

from typing import Any

from qbench.scenario.schema import Point
from qbench.step.liger_kernels import use_liger
from qbench.step.lora_kernels import fuse_adapters
from qbench.step.unsloth_kernels import fuse_for_unsloth


def fuse_layers(model: Any, point: Point, kernels: str) -> None:
    """Let the layers of a model run the kernels that the point names. Raises StepError as each of them."""
    use_liger(model, point, kernels)
    if point.lora is None:
        return
    if point.choices.lora_kernels == "unsloth":
        fuse_for_unsloth(model, kernels)
    else:
        fuse_adapters(model, point, kernels)
