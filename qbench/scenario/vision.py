"""Images of a training: how many, how large, and which parts of a model that sees train.

Keys are those of axolotl (`image_size`) and LLaMA-Factory (`freeze_vision_tower`).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from qbench.scenario.strict import Strict

MOST_IMAGES = 4096
"""Images of one sequence."""

IMAGE_MODELS = frozenset(
    (
        *("gemma3", "idefics3", "internvl", "llava", "mistral3", "mllama"),
        *("qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe"),
        "smolvlm",
    )
)
"""Model types whose images are planned (`step/images.py`)."""

Flag = Annotated[bool, Field(strict=True)]


def _as_text(value: Any) -> Any:
    """Return [640, 480] as 640x480 and 896 as 896x896; anything else as it is."""
    sides = value if isinstance(value, (list, tuple)) else [value]
    if len(sides) not in (1, 2) or any(isinstance(each, bool) for each in sides):
        return value
    texts = [str(each) for each in sides]
    return "x".join(texts * (3 - len(texts))) if all(text.isdecimal() for text in texts) else value


ImageSize = Annotated[str, Field(pattern=r"^(auto|[1-9]\d{0,4}x[1-9]\d{0,4})$"), BeforeValidator(_as_text)]


class VisionSettings(Strict):
    """What a model that takes images is trained on, and which of its parts train."""

    num_images: Annotated[int, Field(ge=0, le=MOST_IMAGES, strict=True)] = Field(
        default=1,
        description="Images in each sequence, whose tokens are part of seq_len; 0 trains on text, with the "
        "vision tower in memory.",
    )
    image_size: ImageSize = Field(
        default="auto",
        description="Width x height of each image in pixels before the processor, for example 640x480; auto "
        "is the processor's size, 1024x1024 where it keeps that of the image.",
    )
    freeze_vision_tower: Flag = Field(
        default=False, description="Leave the vision tower as it is, without adapters."
    )
    freeze_multi_modal_projector: Flag = Field(
        default=False, description="Leave what projects images into the language model as it is."
    )

    @property
    def sides(self) -> tuple[int, int] | None:
        """Width and height of each image, None for auto."""
        if self.image_size == "auto":
            return None
        width, height = self.image_size.split("x")
        return int(width), int(height)
