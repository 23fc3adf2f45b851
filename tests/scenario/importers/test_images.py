"""Images in configs of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from qbench.runs.usual import language_config
from qbench.scenario.importers.configs import import_config
from qbench.scenario.importers.reader import Imported
from qbench.scenario.vision import IMAGE_MODELS
from qbench.step.images import _PROCESSORS

AXOLOTL = {
    "adapter": "lora",
    "lora_target_linear": True,
    "sequence_len": 2048,
    "processor_type": "AutoProcessor",
}
FACTORY = {"stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_target": "all"}


def imported(folder: Path, values: dict[str, Any]) -> Imported:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    return import_config(file, language_config)


@pytest.mark.parametrize(
    ("model", "size"),
    [
        # The tower's image_size; Qwen's config has none; 1,540 pixels of Ministral's are 55 x 55 tokens.
        ("google/gemma-3-4b-it", 896),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "auto"),
        ("mistralai/Ministral-3-3B-Instruct-2512", "auto"),
    ],
)
def test_axolotl_plans_an_image_at_the_size_of_the_tower(tmp_path: Path, model: str, size: Any) -> None:
    found = imported(tmp_path, AXOLOTL | {"base_model": model})
    assert found.settings["vision"]["num_images"] == 1
    assert found.settings["vision"]["image_size"] == size
    assert not found.unmodelled


def test_axolotl_freezes_the_modules_that_see(tmp_path: Path) -> None:
    values = AXOLOTL | {"base_model": "google/gemma-3-4b-it", "freeze_mm_modules": True, "image_size": 512}
    found = imported(tmp_path, values)
    assert found.settings["vision"] == {
        "num_images": 1,
        "image_size": 512,
        "freeze_vision_tower": True,
        "freeze_multi_modal_projector": True,
    }


def test_a_model_whose_images_are_not_planned_is_planned_on_text(tmp_path: Path) -> None:
    found = imported(tmp_path, AXOLOTL | {"base_model": "LiquidAI/LFM2-VL-450M"})
    assert found.settings["vision"]["num_images"] == 0
    assert found.unmodelled == {"processor_type": "more"}


def test_llama_factory_plans_the_most_pixels_and_freezes_the_tower(tmp_path: Path) -> None:
    model = {"model_name_or_path": "Qwen/Qwen3-VL-4B-Instruct"}
    found = imported(tmp_path, FACTORY | model | {"image_max_pixels": 262144, "video_max_pixels": 16384})
    # 262,144 = 512 x 512
    assert found.settings["vision"] == {
        "num_images": 1,
        "image_size": 512,
        "freeze_vision_tower": True,
        "freeze_multi_modal_projector": True,
    }
    assert not found.unmodelled


def test_models_with_images_are_those_with_a_processor() -> None:
    assert _PROCESSORS.keys() - {"pixtral"} | {"mistral3"} == IMAGE_MODELS
