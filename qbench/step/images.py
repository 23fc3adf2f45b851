"""What a model's processor makes of images: how many tokens stand for them, and tensors by name and shape.

Processors need files that a config does not have. Each function here follows one of transformers 5.24, by
its source, with the sizes of the model's config; where those are the processor's own, those that the
checkpoints of the family are published with (preprocessor_config.json).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from qbench.errors import StepError
from qbench.scenario.schema import Point

if TYPE_CHECKING:
    from transformers import PretrainedConfig

OWN_SIZE = (1024, 1024)
"""Width and height that are planned where a processor keeps an image's size and none is given."""

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The images of a batch, as a processor hands them to the model."""

    size: tuple[int, int]
    """Width and height of each image that is planned."""
    tokens: int
    """Tokens that stand for one image, all of them replaced by what the tower sees."""
    others: int = 0
    """Further tokens that come with an image, such as ends of rows."""
    pixels: dict[str, Shape]
    """Shape of each floating-point input."""
    whole: dict[str, torch.Tensor] = field(default_factory=dict)
    """Inputs of whole numbers, on the CPU."""
    types: str = ""
    """Name of the input that marks the tokens of images with 1; empty where there is none."""


Processor = Callable[[Any, tuple[int, int] | None, int, int], Images]
"""Takes config, width and height (None for auto), sequences, images of each; returns those of the batch."""


def images_of(point: Point, config: PretrainedConfig) -> Images | None:
    """Return the images of a batch of the point, None where it trains on text.

    Raises StepError for a model whose processor is not planned, and images that a sequence has no room for.
    """
    vision = point.vision
    if vision is None or vision.num_images == 0:
        return None
    if point.train.task != "sft":
        raise StepError(f"images are planned for task sft, not {point.train.task}; give num_images: 0")
    processor = _PROCESSORS.get(_kind(config))
    if processor is None:
        raise StepError(
            f"images are not planned for model type {config.model_type}; allowed: "
            f"{', '.join(sorted(_PROCESSORS))}; give num_images: 0 (--num-images 0) for text alone"
        )
    rows = point.train.per_device_train_batch_size
    images = processor(config, vision.sides, rows, vision.num_images)
    needed = vision.num_images * (images.tokens + images.others + 1)
    if needed > point.train.seq_len:
        width, height = images.size
        raise StepError(
            f"num_images {vision.num_images} of {width}x{height} take {needed:,} tokens, more than seq_len "
            f"{point.train.seq_len:,}; use smaller images (--image-size), fewer, or a longer sequence"
        )
    return images


def image_caveats(point: Point, config: PretrainedConfig) -> list[str]:
    """Return what was assumed of the images of a plan."""
    images = images_of(point, config)
    if images is None or point.vision is None:
        return []
    width, height = images.size
    auto = " (image_size auto)" if point.vision.sides is None else ""
    return [
        f"each sequence has {point.vision.num_images} image(s), planned at {width}x{height}{auto}: "
        f"{images.tokens:,} tokens each; larger or more images need more memory"
    ]


def image_token_id(config: Any) -> int:
    """Return the id of the token that stands for images."""
    for name in ("image_token_id", "image_token_index"):
        if (found := getattr(config, name, None)) is not None:
            return int(found)
    raise StepError(f"the config of a {config.model_type} names no image_token_id; add it to config.json")


def _kind(config: Any) -> str:
    tower = getattr(getattr(config, "vision_config", None), "model_type", "")
    return "pixtral" if tower == "pixtral" else str(config.model_type)


def smart_resize(size: tuple[int, int], factor: int, least: int, most: int) -> tuple[int, int]:
    """Return width and height in whole multiples of `factor`, their product within bounds.

    Source: models/qwen2_vl/image_processing_qwen2_vl.py, `smart_resize`.
    """
    width, height = (round(side / factor) * factor for side in size)
    area = size[0] * size[1]
    if width * height > most:
        by = math.sqrt(area / most)
        width, height = (max(factor, math.floor(side / by / factor) * factor) for side in size)
    elif width * height < least:
        by = math.sqrt(least / area)
        width, height = (math.ceil(side * by / factor) * factor for side in size)
    return width, height


def _grid(least: int, most: int) -> Processor:
    """Return the processor of a tower that takes patches in a grid and merges neighbours."""

    def process(config: Any, sides: tuple[int, int] | None, rows: int, count: int) -> Images:
        tower, size = config.vision_config, sides or OWN_SIZE
        patch, merge = tower.patch_size, tower.spatial_merge_size
        resized = smart_resize(size, patch * merge, least, most)
        across, down = (side // patch for side in resized)
        channels = getattr(tower, "in_channels", getattr(tower, "in_chans", 3))
        flat = channels * getattr(tower, "temporal_patch_size", 1) * patch**2
        patches = rows * count * across * down
        return Images(
            size=size,
            tokens=across * down // merge**2,
            pixels={"pixel_values": (patches, flat)},
            whole={"image_grid_thw": torch.tensor([[1, down, across]] * (rows * count))},
            types="mm_token_type_ids",
        )

    return process


def _square(config: Any, sides: tuple[int, int] | None, rows: int, count: int) -> Images:
    """Take each image at the tower's own size, with one token for each patch (LLaVA's CLIP).

    Source: models/llava/processing_llava.py, `_get_num_multimodal_tokens`.
    """
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    tokens = (side // patch) ** 2 + (config.vision_feature_select_strategy == "full")
    return Images(size=(side, side), tokens=tokens, pixels={"pixel_values": (rows * count, 3, side, side)})


def _gemma3(config: Any, sides: tuple[int, int] | None, rows: int, count: int) -> Images:
    """Take each image at the tower's own size, without pan and scan (models/gemma3/processing_gemma3.py)."""
    side = config.vision_config.image_size
    return Images(
        size=(side, side),
        tokens=config.mm_tokens_per_image,
        others=2,
        pixels={"pixel_values": (rows * count, 3, side, side)},
        types="token_type_ids",
    )


def _pixtral(config: Any, sides: tuple[int, int] | None, rows: int, count: int) -> Images:
    """Fit each image into the tower's size, in whole patches; each row ends with a token of its own.

    Source: models/pixtral/image_processing_pixtral.py, `get_resize_output_image_size`, and
    processing_pixtral.py, `_get_num_multimodal_tokens`; `longest_edge` is the tower's image_size.
    """
    tower, merge = config.vision_config, getattr(config, "spatial_merge_size", 1)
    size = sides or OWN_SIZE
    by = max(1.0, *(side / tower.image_size for side in size))
    step = tower.patch_size * merge
    width, height = (math.ceil(math.floor(side / by) / step) * step for side in size)
    across, down = width // step, height // step
    return Images(
        size=size,
        tokens=across * down,
        others=down,
        pixels={"pixel_values": (rows * count, 3, height, width)},
        whole={"image_sizes": torch.tensor([[height, width]] * (rows * count))},
    )


def _internvl(config: Any, sides: tuple[int, int] | None, rows: int, count: int) -> Images:
    """Cut each image into tiles of the tower's size, with a small picture of the whole beside several.

    Source: models/internvl/processing_internvl.py (`crop_to_patches`) and
    models/got_ocr2/image_processing_got_ocr2.py, `get_optimal_tiled_canvas`.
    """
    size, side = sides or OWN_SIZE, config.vision_config.image_size[0]
    across, down = _canvas(size, side, 1, _MOST_TILES)
    tiles = across * down + (across * down > 1)
    return Images(
        size=size,
        tokens=tiles * config.image_seq_length,
        others=2,
        pixels={"pixel_values": (rows * count * tiles, 3, side, side)},
    )


_MOST_TILES = 12
"""`max_patches` of GotOcr2ImageProcessor, which InternVL takes."""


def _canvas(size: tuple[int, int], side: int, least: int, most: int) -> tuple[int, int]:
    """Return tiles across and down whose ratio is nearest to the image's; of equals more, if half full."""
    grids = [(w, h) for w in range(1, most + 1) for h in range(1, most + 1) if least <= w * h <= most]
    best, nearest = (1, 1), math.inf
    for grid in sorted(grids, key=lambda each: each[0] * each[1]):
        off = abs(size[0] / size[1] - grid[0] / grid[1])
        fills = size[0] * size[1] > 0.5 * side**2 * grid[0] * grid[1]
        if off < nearest or (off == nearest and fills):
            best, nearest = grid, off
    return best


def _splitting(config: Any, sides: tuple[int, int] | None, rows: int, count: int) -> Images:
    """Scale the longer side to four tiles, cut the image into tiles, and add one of the whole.

    Source: models/smolvlm/image_processing_smolvlm.py, `get_number_of_image_patches`, with the sizes of its
    checkpoints: tiles as large as the tower's images.
    """
    size, side = sides or OWN_SIZE, config.vision_config.image_size
    longest = 4 * side
    width, height = (math.ceil(max(1, int(each * longest / max(size))) / side) for each in size)
    tiles = width * height + 1
    per_tile = (side // config.vision_config.patch_size) ** 2 // config.scale_factor**2
    shape = (rows, count * tiles, 3, side, side)
    return Images(
        size=size,
        tokens=tiles * per_tile,
        others=3 * tiles + height,
        pixels={"pixel_values": shape},
        whole={"pixel_attention_mask": torch.ones((rows, count * tiles, side, side), dtype=torch.bool)},
    )


def _mllama(config: Any, sides: tuple[int, int] | None, rows: int, count: int) -> Images:
    """Lay each image on up to four tiles, padded to four; layers of their own attend to what is seen.

    Source: models/mllama/image_processing_mllama.py; a square image larger than a tile takes all four.
    """
    tower, size = config.vision_config, sides or OWN_SIZE
    most, side = tower.max_num_tiles, tower.image_size
    ratios = [(w, h) for w in range(1, most + 1) for h in range(1, most + 1) if w * h <= most]
    across, down = _mllama_canvas(size, side, ratios)
    tiles = across * down
    ids = torch.full((rows, count), ratios.index((across, down)) + 1)
    mask = torch.zeros((rows, count, most), dtype=torch.long)
    mask[..., :tiles] = 1
    return Images(
        size=size,
        tokens=1,
        pixels={"pixel_values": (rows, count, most, 3, side, side)},
        whole={"aspect_ratio_ids": ids, "aspect_ratio_mask": mask},
    )


def _mllama_canvas(size: tuple[int, int], side: int, ratios: list[tuple[int, int]]) -> tuple[int, int]:
    """Return tiles across and down that scale an image least (`get_optimal_tiled_canvas`)."""
    scales = {each: min(each[0] * side / size[0], each[1] * side / size[1]) for each in ratios}
    larger = [scale for scale in scales.values() if scale >= 1]
    chosen = min(larger) if larger else max(scales.values())
    return min((each for each in ratios if scales[each] == chosen), key=lambda each: each[0] * each[1])


_QWEN = (56 * 56, 12_845_056)
_QWEN3 = (65_536, 16_777_216)
_PROCESSORS: dict[str, Processor] = {
    "qwen2_vl": _grid(*_QWEN),
    "qwen2_5_vl": _grid(*_QWEN),
    "qwen3_vl": _grid(*_QWEN3),
    "qwen3_vl_moe": _grid(*_QWEN3),
    "qwen3_5": _grid(*_QWEN3),
    "qwen3_5_moe": _grid(*_QWEN3),
    "gemma3": _gemma3,
    "llava": _square,
    "pixtral": _pixtral,
    "internvl": _internvl,
    "smolvlm": _splitting,
    "idefics3": _splitting,
    "mllama": _mllama,
}
"""By model type, or by the type of the tower where it decides; bounds are the pixels of an image."""
