"""How each recipe prepares the model, and who keeps its outputs alive.

plain    a hand-written loop over the model as loaded; the outputs stay alive through backward
peft     the same after peft's `prepare_model_for_kbit_training` where the base is quantized: every
         unquantized parameter becomes fp32 (peft/utils/other.py)
trainer  as peft, under transformers' Trainer, whose `compute_loss` drops the outputs before backward
trl      TRL's SFTTrainer: no upcast, bf16 adapters on a quantized base, a loss that never has all logits

The last two share Trainer's loop (step/trainer_loop.py): gradients are clipped before each update, and its
`loss_of` takes the recipe's loss. The others take the model's own, in step/training_step.py.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from peft import prepare_model_for_kbit_training

from qbench.errors import StepError
from qbench.scenario.schema import Point

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

Context = Callable[[], contextlib.AbstractContextManager[Any]]

TRL_VERSION = "1.16"
"""The version whose source recipe trl follows; another one may lay out its loss differently."""

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


def follows_trainer(recipe: str) -> bool:
    """Say whether transformers' Trainer runs the loop."""
    return recipe in ("trainer", "trl")


def converts_outputs(point: Point) -> bool:
    """Say whether the outputs become fp32 copies: accelerate does so for a Trainer under autocast.

    Source: accelerate/accelerator.py, `prepare_model`: forward is wrapped in autocast and
    `convert_outputs_to_fp32`.
    """
    return follows_trainer(point.train.recipe) and point.train.autocast != "none"


def prepares_for_kbit(point: Point) -> bool:
    """Say whether peft's `prepare_model_for_kbit_training` runs over the base model."""
    return point.method == "qlora" and point.train.recipe in ("peft", "trainer")


def prepare_base(model: PreTrainedModel, point: Point, autocast: Context | None = None) -> PreTrainedModel:
    """Prepare the base model as the recipe does before adapters are added.

    `autocast` makes the context that a recomputation on meta needs, since torch's own skips meta.
    """
    if prepares_for_kbit(point):
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

    Source of trl's cast: trl/trainer/sft_trainer.py, `SFTTrainer.__init__`: what trains on a quantized base
    becomes bf16, but for DoRA's magnitudes. On any other base adapters stay as peft made them, in fp32.
    """
    if point.train.recipe == "trl" and point.method == "qlora":
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_magnitude_vector" not in name:
                parameter.data = parameter.data.to(torch.bfloat16)


def check_recipe(model: Any, point: Point) -> None:
    """Raise StepError where a recipe does not apply: trl's loss reads backbone and head apart."""
    if point.train.recipe != "trl":
        return
    base = model if point.lora is None else model.get_base_model()
    if base.base_model is base:
        raise StepError(
            f"recipe trl does not apply: trl {TRL_VERSION} finds no backbone in {type(base).__name__} "
            "and fails; choose recipe trainer"
        )
    if hasattr(base.get_output_embeddings(), "lora_A"):
        raise StepError(
            "recipe trl takes no adapter on the output head, which its loss would pass over; "
            "leave the head out of target_modules, or choose recipe trainer"
        )


def recipe_caveats(point: Point) -> Iterator[str]:
    """Yield where a point departs from what its recipe does by default, and what is left out."""
    train = point.train
    if train.recipe == "trl":
        yield f"recipe trl follows trl {TRL_VERSION}: its own loss in tiles, without the logits"
        if train.autocast == "none":
            yield "SFTConfig sets bf16=True unless told otherwise (--autocast bf16); none is bf16=False"
    if follows_trainer(train.recipe) and train.autocast == "fp16":
        yield "the gradient scaler of fp16 autocast, some scalars, is left out"
