"""The settings of a point in words, for titles, captions and sentences."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from qbench.scenario.schema import Point
from qbench.scenario.settings import SETTINGS, point_settings
from qbench.units import plain_text

DESCRIBED = (
    "model",
    "precision",
    "r",
    "per_device_train_batch_size",
    "seq_len",
    "gradient_checkpointing",
)
"""The settings that matter most, which `describe` writes out."""


def short_model(name: str) -> str:
    """Return the last part of a model's name or folder."""
    return name.rstrip("/").rsplit("/", 1)[-1] or name


def describe(point: Point, leave_out: Collection[str] = ()) -> str:
    """Return the settings that matter most as text: 'rank 16, batch 1, 2,048 tokens, checkpointing'."""
    train = point.train
    parts = {
        "model": short_model(point.model),
        "precision": point.precision,
        "r": f"rank {point.lora.r}" if point.lora else "full fine-tuning",
        "per_device_train_batch_size": f"batch {train.per_device_train_batch_size}",
        "seq_len": f"{train.seq_len:,} tokens",
        "gradient_checkpointing": "checkpointing" if train.gradient_checkpointing else "no checkpointing",
    }
    return ", ".join(text for name, text in parts.items() if name not in leave_out)


def describe_training(point: Point, leave_out: Collection[str] = ()) -> str:
    """Return what `describe` does, with the recipe and autocast, which affect memory most."""
    parts = [describe(point, leave_out)]
    if "recipe" not in leave_out:
        parts.append(f"recipe {point.train.recipe}")
    if "autocast" not in leave_out and point.train.autocast == "none":
        parts.append("no autocast")
    return ", ".join(filter(None, parts))


def other_settings(point: Point, leave_out: Collection[str] = ()) -> list[str]:
    """Return the settings that `describe` leaves out and that are no defaults: 'optim adamw_8bit'.

    What has no effect on the point is not among them: peft keeps the adapters of a 16-bit base in fp32.
    """
    if point.method != "qlora":
        leave_out = {*leave_out, "adapter_dtype"}
    defaults = point_settings(Point(model=point.model))
    return [
        f"{name} {plain_text(value)}"
        for name, value in point_settings(point).items()
        if value not in (None, defaults[name]) and name not in (*DESCRIBED, *leave_out)
    ]


def describe_all(point: Point, leave_out: Collection[str] = ()) -> str:
    """Return what `describe_training` does, and the other settings that are no defaults."""
    others = other_settings(point, ("recipe", *leave_out))
    return ", ".join(filter(None, [describe_training(point, leave_out), *others]))


def change_text(changes: Mapping[str, Any]) -> str:
    """Return changed settings as the tables name them: 'recipe trainer', 'batch 2, accum 2'."""
    return ", ".join(
        "LoRA" if name == "lora" else f"{SETTINGS[name].short} {plain_text(value)}"
        for name, value in changes.items()
    )
