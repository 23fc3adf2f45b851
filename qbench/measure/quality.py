"""What the numbers of a run are worth: how far quantization moved real weights, and the loss on one text.

Both are looked at after all that is measured has been read: the original weights are loaded beside the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft.utils.integrations import dequantize_bnb_weight
from transformers.pytorch_utils import Conv1D

from qbench.errors import StepError
from qbench.measure.task import Phase, Task
from qbench.records.parts import Metrics, Quality
from qbench.scenario.schema import Point
from qbench.step.data import SEED
from qbench.step.model import build_base_model, load_config
from qbench.step.quantize import is_quantized_weight
from qbench.step.training_step import TrainingStep

REFERENCE_PRECISION = "bf16"
"""How a checkpoint's weights are loaded before bitsandbytes packs them (step/model.py, `base_dtype`)."""


def text_loss(step: TrainingStep) -> float | None:
    """Return the loss over the whole text; None for random tokens, of which nothing can be learnt."""
    if step.point.data == "random":
        return None
    step.on_phase("evaluate")
    return step.evaluate()


def quality_detail(
    step: TrainingStep, task: Task, losses: tuple[float | None, float | None], steps: int
) -> Quality | None:
    """Return what a record keeps as detail.quality; None for random weights, of which nothing follows.

    `losses` are those over the text before and after `steps` optimizer steps. Weights are the same in every
    process of a point, so only the first one compares them.
    """
    point = task.point
    if point.weights == "random":
        return None
    detail: Quality = {"loss_before": losses[0], "loss_after": losses[1], "steps": steps, "seed": SEED}
    if losses[0] is not None:
        detail |= {"data": point.data, "tokens": sum(batch["labels"].numel() for batch in step.batches)}
    if point.method == "qlora" and task.repeat == 0:
        detail |= _weights_detail(step, point)
    return detail


def quality_metrics(detail: Quality | None) -> Metrics:
    """Return the metrics that are among a record's detail.quality."""
    metrics: Metrics = {}
    if detail is not None and (loss := detail.get("loss_after")) is not None:
        metrics["text_loss"] = loss
    if detail is not None and (error := detail.get("weight_error")) is not None:
        metrics["weight_error"] = error
    return metrics


def _weights_detail(step: TrainingStep, point: Point) -> Quality:
    try:
        return weight_errors(step.model, point, step.on_phase)
    except StepError as error:
        # The measurement itself is done and stands.
        return {"weights_error": str(error)}


def weight_errors(model: Any, point: Point, on_phase: Phase) -> Quality:
    """Return how far the quantized weights of a model are from those of its checkpoint.

    `weight_error` is the norm of all differences over the norm of all originals, `by_module` the same for
    each module, as shares of 1. Raises StepError when the checkpoint cannot be loaded again.
    """
    on_phase("compare weights")
    originals = dict(_original_modules(point))
    norms = {
        name: _norms(module, originals[name])
        for name, module in _quantized_modules(model)
        if name in originals
    }
    if not norms:
        return {}
    total = [sum(column) for column in zip(*norms.values(), strict=True)]
    return {
        "weight_error": _share(*total),
        "by_module": {name: _share(*squares) for name, squares in norms.items()},
    }


def _original_modules(point: Point) -> Iterator[tuple[str, Any]]:
    """Yield the modules of the checkpoint as it was before it was packed, in the computer's own memory."""
    plain = point.model_copy(update={"precision": REFERENCE_PRECISION})
    base = build_base_model(plain, torch.device("cpu"), load_config(plain))
    yield from base.named_modules()


def _quantized_modules(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield quantized modules under the names that they have without adapters."""
    for name, module in model.named_modules():
        if is_quantized_weight(module._parameters.get("weight")):
            yield name.removeprefix("base_model.model.").removesuffix(".base_layer"), module


@torch.no_grad()
def _norms(module: Any, original: Any) -> tuple[float, float]:
    """Return the squared norms of the difference and of the original weight."""
    packed: Any = module.weight
    restored = dequantize_bnb_weight(packed, getattr(module, "state", None)).float()
    weight = original.weight.to(restored.device).float()
    if isinstance(original, Conv1D):  # GPT-2 keeps its weights the other way round.
        weight = weight.T
    return (restored - weight).square().sum().item(), weight.square().sum().item()


def _share(difference: float, original: float) -> float:
    return float((difference / original) ** 0.5) if original else 0.0
