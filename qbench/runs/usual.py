"""Settings that follow from the given ones, where the schema's default would mislead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qbench.catalog.models import has_experts, precision_of_checkpoint, resolve_model, text_part
from qbench.errors import CatalogError

AUTOCAST_OF_TRL = "bf16"
"""trl/trainer/sft_config.py: bf16 is True unless fp16 is set."""
COMMON_RECIPES: tuple[dict[str, str], ...] = (
    {"recipe": "trainer", "autocast": "bf16"},
    {"recipe": "trl", "autocast": AUTOCAST_OF_TRL},
)
"""How most people train: transformers' Trainer with bf16=True, and TRL's SFTTrainer."""


def with_usual(model: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by field name with those that follow from them for a model.

    SFTTrainer runs under autocast, and peft refuses dropout on stacked experts
    (peft/tuners/lora/layer.py, `ParamWrapper`). A checkpoint that bitsandbytes quantized is loaded so.
    """
    follows: dict[str, Any] = {}
    if given.get("recipe") in ("trl", "unsloth"):  # unsloth/trainer.py hands on to SFTTrainer.
        follows["autocast"] = AUTOCAST_OF_TRL
    if (
        given.get("target_modules", "all-linear") == "all-linear"
        and "lora" not in given
        and has_experts(model)
    ):
        follows["lora_dropout"] = 0
    if "precision" not in given and (stored := precision_of_checkpoint(model)):
        follows["precision"] = stored
    return follows | dict(given)


def language_config(model: str) -> Mapping[str, Any]:
    """Return the config of the language part of a catalog model or a folder; empty for others.

    Beside it is that of its tower, with the type of the whole model.
    """
    try:
        config = resolve_model(model).config or {}
    except CatalogError:
        return {}
    shared: dict[str, Any] = {key: config[key] for key in ("dtype", "torch_dtype") if key in config}
    tower = config.get("vision_config")
    if isinstance(tower, dict):
        shared["vision_config"] = tower | {"model_type": config.get("model_type")}
    return {**shared, **text_part(config)}
