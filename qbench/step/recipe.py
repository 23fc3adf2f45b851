"""How each recipe prepares the model, and who keeps its outputs alive.

plain    a hand-written loop over the model as loaded; the outputs stay alive through backward
peft     the same after peft's `prepare_model_for_kbit_training` where the base is quantized: every
         unquantized parameter becomes fp32 (peft/utils/other.py)
trainer  as peft, under transformers' Trainer, whose `compute_loss` drops the outputs before backward
trl      TRL's SFTTrainer: no upcast, bf16 adapters on a quantized base
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from peft import prepare_model_for_kbit_training

from qbench.scenario.schema import Point

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

Context = Callable[[], contextlib.AbstractContextManager[Any]]

CHECKPOINTING: dict[str, Any] = {"use_reentrant": False}
"""What transformers 5 and torch recommend; the re-entrant form keeps other tensors alive."""


def keeps_outputs(recipe: str) -> bool:
    """Say whether the caller still holds the model's outputs, logits among them, during backward."""
    return recipe in ("plain", "peft")


def keeps_cache(point: Point) -> bool:
    """Say whether the outputs hold the keys and values of all layers, as configs of transformers ask for.

    Checkpointing switches that off (modeling_layers.py, `GradientCheckpointingLayer`), and so does Trainer,
    whose `TrainingArguments.use_cache` is False; a hand-written loop leaves it on.
    """
    return keeps_outputs(point.train.recipe) and not point.train.gradient_checkpointing


def converts_outputs(point: Point) -> bool:
    """Say whether the outputs become fp32 copies: accelerate does so for a Trainer under autocast.

    Source: accelerate/accelerator.py, `prepare_model`: forward is wrapped in autocast and
    `convert_outputs_to_fp32`.
    """
    return point.train.recipe in ("trainer", "trl") and point.train.autocast != "none"


def prepare_base(model: PreTrainedModel, point: Point, autocast: Context | None = None) -> PreTrainedModel:
    """Prepare the base model as the recipe does before adapters are added.

    `autocast` makes the context that a recomputation on meta needs, since torch's own skips meta.
    """
    if point.method == "qlora" and point.train.recipe in ("peft", "trainer"):
        # Its own checkpointing switch is left off: the scenario alone decides.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    elif point.method != "full":
        model.requires_grad_(False)
    if point.train.gradient_checkpointing:
        _enable_checkpointing(model, autocast)
    return model


def _enable_checkpointing(model: PreTrainedModel, autocast: Context | None) -> None:
    settings = dict(CHECKPOINTING)
    if autocast is not None:
        settings["context_fn"] = lambda: (contextlib.nullcontext(), autocast())
    with warnings.catch_warnings():
        # Renamed to activation_checkpointing_enable in transformers 5.24; the old name serves older ones.
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)


def finish_adapters(model: PeftModel, point: Point) -> None:
    """Cast the adapters as the recipe does once they exist.

    Source of trl's cast: trl/trainer/sft_trainer.py, adapters of a quantized base become bf16.
    """
    if point.train.recipe == "trl" and point.method == "qlora":
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
