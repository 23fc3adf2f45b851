"""Images in configs of axolotl and LLaMA-Factory as settings of `vision`."""

from __future__ import annotations

import math
from typing import Any

from qbench.scenario.importers.reader import Reader
from qbench.scenario.importers.values import whole_number
from qbench.scenario.vision import IMAGE_MODELS

_LLAMA_FACTORY_PIXELS = 768 * 768
"""Default of `image_max_pixels` (ff6d4d1, hparams/model_args.py)."""

_OF_VIDEOS = ("video_max_pixels", "video_min_pixels", "video_fps", "video_maxlen")


def axolotl_images(reader: Reader, model: str) -> dict[str, Any] | None:
    """Return the settings of images where a processor is named; None where the file trains on text.

    axolotl scales an image to `image_size`, or to that of the model's tower where its config has one, and
    takes one image of a sample's `images` (067b021, processing_strategies.py and loaders/utils.py).
    """
    processor = reader.get("processor_type")
    given = reader.get("image_size")
    reader.get("image_resize_algorithm")
    frozen = reader.is_on("freeze_mm_modules")
    tower = _tower(reader, model)
    if tower is None or not (processor or frozen):
        if processor and tower is None:
            reader.leave_out("processor_type", "more", f"whether {model} takes images is not known here")
        return None
    seen = bool(processor) and _is_planned(reader, "processor_type", tower)
    if seen:
        reader.tell("one image in each sequence is planned; the file does not say how many its data has")
    return {
        "num_images": 1 if seen else 0,
        "image_size": given or _size_of_tower(reader, tower),
        "freeze_vision_tower": frozen,
        "freeze_multi_modal_projector": frozen,
    }


def _tower(reader: Reader, model: str) -> dict[str, Any] | None:
    """Return the config of the part of a model that sees; None where there is none, or nothing is known."""
    tower = (reader.config_of(model) if model else {}).get("vision_config")
    return tower if isinstance(tower, dict) else None


def _is_planned(reader: Reader, key: str, tower: dict[str, Any]) -> bool:
    kind = tower["model_type"]
    if kind not in IMAGE_MODELS:
        reader.leave_out(key, "more", f"images are not planned for model type {kind}; planned on text")
    return kind in IMAGE_MODELS


def _size_of_tower(reader: Reader, tower: dict[str, Any]) -> Any:
    """Return the size that axolotl takes from the config, auto where a sequence has no room for it."""
    size = tower.get("image_size")
    sides = size if isinstance(size, list) else [size]
    numbers = [number for number in map(whole_number, sides) if number]
    patch = tower.get("patch_size")
    patches = [
        number for number in map(whole_number, patch if isinstance(patch, list) else [patch]) if number
    ]
    length = whole_number(reader.get("sequence_len", default=512))
    if not numbers or not patches or length is None:
        return "auto"
    # Two by two patches become a token.
    return size if (max(numbers) / patches[0] / 2) ** 2 < 0.9 * length else "auto"


def llama_factory_images(reader: Reader, model: str, stage: str) -> dict[str, Any] | None:
    """Return the settings of images where the file says how many pixels they may have; None for text.

    LLaMA-Factory scales images down to `image_max_pixels` and leaves tower and projector as they are unless
    told otherwise (ff6d4d1, data/mm_plugin.py and model/model_utils/visual.py).
    """
    tower = _tower(reader, model)
    pixels = reader.get("image_max_pixels")
    reader.get("image_min_pixels")
    has_videos = any(reader.get(name) is not None for name in _OF_VIDEOS)
    frozen = {
        name: reader.is_on(name, default=True)
        for name in ("freeze_vision_tower", "freeze_multi_modal_projector")
    }
    if reader.is_on("freeze_language_model"):
        reader.leave_out("freeze_language_model", "less", "planned with a language model that trains")
    if tower is None:
        for name in ("image_max_pixels", "video_max_pixels") if model else ():
            if reader.values.get(name) is not None:
                reader.leave_out(name, "more", f"whether {model} takes images is not known here")
        return None
    if pixels is None and not has_videos:
        return None
    if has_videos:
        reader.tell("videos are not planned; a file's video keys matter where its data has some")
    images = 1 if stage in ("sft", "pt") and _is_planned(reader, "image_max_pixels", tower) else 0
    if stage not in ("sft", "pt"):
        reader.leave_out("image_max_pixels", "more", f"images are not planned in stage {stage}")
    if not images:
        return {"num_images": 0, **frozen}
    side = math.isqrt(whole_number(pixels) or _LLAMA_FACTORY_PIXELS)
    reader.tell(f"one square image of image_max_pixels ({side}x{side}) in each sequence is planned")
    return {"num_images": 1, "image_size": side, **frozen}
