"""What a step does to the model before training, and who keeps its outputs alive, by the point's choices.

`Point.choices` holds them: the recipe's row in `scenario/recipes.py`, and the settings that say otherwise.

loop             by_hand: the outputs stay alive through backward; trainer: `compute_loss` of transformers'
                 Trainer drops them, and gradients are clipped before each update (step/trainer_loop.py)
upcast           peft: `prepare_model_for_kbit_training` makes every unquantized parameter fp32; axolotl:
                 that, and norms, embeddings and head come back to the base's dtype; none: they stay as loaded
adapter_dtype    what adapters on a quantized base become; on any other base they stay fp32, as peft made them
checkpoint_impl  the form of torch.utils.checkpoint; inputs of layers that wait on the host take the
                 re-entrant one (step/offload.py)
loss_type        full_logits is the model's own; all others never have all logits at once (step/fused_head.py)
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from peft import prepare_model_for_kbit_training
from torch.utils.checkpoint import checkpoint

from qbench.errors import StepError
from qbench.scenario.schema import Point
from qbench.step.dtypes import AUTOCAST_DTYPES, base_dtype
from qbench.step.offload import Buffers, Context, offloaded_checkpoint
from qbench.step.towers import freeze_parts

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


TRL_VERSION = "1.16"
"""The version whose source recipe trl follows; another one may lay out its loss differently."""

_EMBEDDINGS = {
    "gpt_neox": ("embed_in", "embed_out"),
    "falcon": ("word_embeddings", "lm_head"),
    "nemotron_h": ("embeddings", "lm_head"),
}
"""Embeddings and head by model type; embed_tokens and lm_head elsewhere.

Source: axolotl 067b021, loaders/utils.py, `get_linear_embedding_layers`.
"""


def keeps_outputs(point: Point) -> bool:
    """Say whether the caller still holds the model's outputs, logits among them, during backward."""
    return point.choices.loop == "by_hand"


def keeps_cache(point: Point) -> bool:
    """Say whether the outputs hold the keys and values of all layers, as configs of transformers ask for.

    Checkpointing switches that off (modeling_layers.py, `GradientCheckpointingLayer`), and so does Trainer,
    whose `TrainingArguments.use_cache` is False; a hand-written loop leaves it on.
    """
    return keeps_outputs(point) and not point.train.gradient_checkpointing


def follows_trainer(point: Point) -> bool:
    """Say whether transformers' Trainer runs the loop."""
    return point.choices.loop == "trainer"


def converts_outputs(point: Point) -> bool:
    """Say whether the outputs become fp32 copies: accelerate does so for a Trainer under autocast.

    Source: accelerate/accelerator.py, `prepare_model`: forward is wrapped in autocast and
    `convert_outputs_to_fp32`; that of DeepSpeed's engine is not.
    """
    return follows_trainer(point) and point.train.autocast != "none" and not point.runs_in_engine


def prepares_for_kbit(point: Point) -> bool:
    """Say whether peft's `prepare_model_for_kbit_training` runs over the base model."""
    # Reading packed experts would unpack all (axolotl 067b021, `_prepare_model_for_quantization`).
    packs_experts = point.quantization.quantize_moe_experts
    return point.method == "qlora" and point.choices.upcast != "none" and not packs_experts


def empties_cache(point: Point) -> bool:
    """Say whether the allocator's cache is emptied once the adapters are there.

    Source: axolotl 067b021, loaders/model.py, `_apply_post_lora_load_setup`.
    """
    return point.choices.upcast == "axolotl"


def returns_to_base_dtype(model: torch.nn.Module, point: Point) -> list[str]:
    """Return the modules that go to fp32 and come back before training: norms, embeddings and head.

    Source: axolotl 067b021, loaders/model.py, `_convert_embedding_modules_dtype`; its patterns are parts of
    names, so a norm within a larger name counts.
    """
    if point.choices.upcast != "axolotl" or point.lora is None:
        return []
    model_type = str(getattr(getattr(model, "config", None), "model_type", ""))
    parts = _EMBEDDINGS.get(model_type, ("embed_tokens", "lm_head"))
    return [
        name
        for name, module in model.named_modules()
        if "norm" in name or (hasattr(module, "weight") and any(part in name for part in parts))
    ]


def prepare_base(model: PreTrainedModel, point: Point, autocast: Context | None = None) -> PreTrainedModel:
    """Prepare the base model as the recipe does before adapters are added.

    `autocast` makes the context that a recomputation on meta needs, since torch's own skips meta.
    """
    returning = returns_to_base_dtype(model, point)
    for name in returning:
        model.get_submodule(name).to(torch.float32)
    if prepares_for_kbit(point):
        # Its own checkpointing switch is left off: the scenario alone decides.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    elif point.method != "full":
        model.requires_grad_(False)
    freeze_parts(model, point.vision)
    for name in returning:
        model.get_submodule(name).to(base_dtype(point.precision))
    if point.train.gradient_checkpointing:
        _enable_checkpointing(model, point, autocast)
    return model


def _enable_checkpointing(model: PreTrainedModel, point: Point, autocast: Context | None) -> None:
    offloading = point.choices.activation_offloading
    is_reentrant = point.choices.checkpoint_impl == "reentrant" or offloading != "none"
    if is_reentrant and point.method != "full":
        # Without an input that needs a gradient this form has no backward (peft/utils/other.py).
        model.enable_input_require_grads()
    if offloading != "none":
        buffers = Buffers() if offloading == "unsloth" else None
        model._set_gradient_checkpointing(True, offloaded_checkpoint(autocast, buffers))
        return
    if is_reentrant and autocast is not None:
        model._set_gradient_checkpointing(True, functools.partial(_reentrant_on_meta, autocast))
        return
    settings: dict[str, Any] = {"use_reentrant": is_reentrant}
    if autocast is not None:
        settings["context_fn"] = lambda: (contextlib.nullcontext(), autocast())
    with warnings.catch_warnings():
        # Renamed to activation_checkpointing_enable in transformers 5.24; the old name serves older ones.
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)


def _reentrant_on_meta(autocast: Context, function: Callable[..., Any], *args: Any) -> Any:
    """Checkpoint a layer in the re-entrant form, recomputed under the autocast of meta."""

    def run(*inputs: Any) -> Any:
        # The first pass, without gradients, is within the step's own autocast.
        with autocast() if torch.is_grad_enabled() else contextlib.nullcontext():
            return function(*inputs)

    return checkpoint(run, *args, use_reentrant=True)


def finish_adapters(model: PeftModel, point: Point) -> None:
    """Cast the adapters on a quantized base once they exist, but for DoRA's magnitudes.

    Source: trl/trainer/sft_trainer.py, `SFTTrainer.__init__`, for bf16.
    """
    dtype = AUTOCAST_DTYPES.get(point.choices.adapter_dtype)
    if dtype is not None and point.method == "qlora":
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_magnitude_vector" not in name:
                parameter.data = parameter.data.to(dtype)


def check_recipe(model: Any, point: Point) -> None:
    """Raise StepError where a loss does not apply: all but full_logits read backbone and head apart."""
    loss = point.choices.loss_type
    if loss == "full_logits":
        return
    base = model if point.lora is None else model.get_base_model()
    if base.base_model is base:
        raise StepError(
            f"loss_type {loss} does not apply: there is no backbone apart from the head in "
            f"{type(base).__name__}; choose loss_type full_logits"
        )
    if hasattr(base.get_output_embeddings(), "lora_A"):
        raise StepError(
            f"loss_type {loss} takes no adapter on the output head, which it would pass over; "
            "leave the head out of target_modules, or choose loss_type full_logits"
        )


def recipe_caveats(point: Point) -> Iterator[str]:
    """Yield where a point departs from what its recipe does by default, and what is left out."""
    train, choices = point.train, point.choices
    if train.recipe == "trl" and choices.loss_type == "chunked":
        yield f"recipe trl follows trl {TRL_VERSION}: its own loss in tiles, without the logits"
    if train.recipe == "trl" and train.autocast == "none":
        yield "SFTConfig sets bf16=True by default (--autocast bf16); autocast none corresponds to bf16=False"
    if train.recipe in ("axolotl", "llama-factory", "ms-swift", "unsloth"):
        yield f"recipe {train.recipe} follows {choices.source.partition(',')[0]}"
        if train.autocast == "none":
            yield f"{train.recipe} trains under autocast where bf16 or fp16 is on (--autocast bf16)"
    if follows_trainer(point) and train.autocast == "fp16":
        yield "the gradient scaler of fp16 autocast, some scalars, is left out"
