"""The plan for the CPU against the real step on the CPU: to the byte, for every family of the catalog."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny import (
    FAMILIES,
    IMAGE_FAMILIES,
    NOT_HELD,
    ONCE_FAMILIES,
    OTHER_FAMILIES,
    write_tiny_model,
    write_tiny_vision_model,
)

from qbench.catalog.models import find_model
from qbench.catalog.models import models as catalog_models
from qbench.errors import StepError
from qbench.memory.history.breakdown import MemoryProfile, profile
from qbench.memory.history.recording import record_steps
from qbench.planner.trace import trace
from qbench.scenario.schema import LoraSettings, Point, TrainSettings, VisionSettings
from qbench.step.training_step import build_step

UNQUANTIZABLE = {
    # transformers 5.24 replaces layers of the class nn.Linear only (integrations/bitsandbytes.py,
    # replace_with_bnb_linear); Falcon's are a subclass of it.
    "falcon"
}


def point(model: str, precision: str, checkpointing: bool = False, **changes) -> Point:
    lora = LoraSettings(r=changes.pop("r", 4), **changes.pop("lora", {}))
    train = TrainSettings(
        **{"seq_len": 48, "per_device_train_batch_size": 2, "gradient_checkpointing": checkpointing} | changes
    )
    return Point(model=model, precision=precision, lora=lora, train=train)


def measured(point: Point) -> tuple[MemoryProfile, tuple[int, int]]:
    step = build_step(point, "cpu")
    memory = profile(record_steps(step, {"cpu"}, "cpu").ledger)
    return memory, (step.facts.trainable_params, step.facts.total_params)


def assert_plan_is_measurement(point: Point) -> None:
    planned = trace(point, "cpu")
    memory, counts = measured(point)
    assert (planned.facts.trainable_params, planned.facts.total_params) == counts
    # Event numbers and operators may differ where CPU and meta run other operators for the same tensor.
    without_names = {"peak_at": {}, "timeline": []}
    assert replace(planned.memory, **without_names) == replace(memory, **without_names)
    assert sum(memory.breakdown.values()) == memory.peak_bytes


@pytest.mark.parametrize("checkpointing", [False, True], ids=["saved", "checkpointed"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "nf4", "nf4-dq"])
@pytest.mark.parametrize("family", FAMILIES)
def test_family(tmp_path: Path, family: str, precision: str, checkpointing: bool) -> None:
    model = write_tiny_model(tmp_path / family, FAMILIES[family])
    case = point(model, precision, checkpointing)
    if family in UNQUANTIZABLE and precision.startswith("nf4"):
        with pytest.raises(StepError, match="quantizes no layer"):
            trace(case, "cpu")
        return
    assert_plan_is_measurement(case)


@pytest.mark.parametrize(
    "changes",
    [
        {"r": 1},
        {"r": 256},
        {"per_device_train_batch_size": 1},
        {"per_device_train_batch_size": 4},
        {"gradient_accumulation_steps": 3},
        {"lora": {"use_dora": True}},
        {"lora": {"use_rslora": True}},
        {"lora": {"lora_dropout": 0.0}},
        {"lora": {"target_modules": ("q_proj", "v_proj")}},
        {"optim": "sgd"},
        {"optim": "adamw_8bit"},
        {"recipe": "plain"},
        {"recipe": "trainer"},
        {"recipe": "trl"},
        {"recipe": "trl", "lora": {"use_dora": True}},
        {"recipe": "trainer", "gradient_accumulation_steps": 3},
        {"recipe": "axolotl", "checkpointing": True, "autocast": "bf16"},
        {"recipe": "llama-factory", "checkpointing": True},
        {"recipe": "axolotl", "loss_type": "cut_cross_entropy"},
        {"recipe": "trainer", "loss_type": "liger"},
        {"adapter_dtype": "bf16"},
        {"attn_implementation": "eager"},
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["bf16", "nf4-dq"])
def test_setting(tmp_path: Path, precision: str, changes: dict) -> None:
    model = write_tiny_model(tmp_path / "llama", FAMILIES["llama"])
    assert_plan_is_measurement(point(model, precision, **changes))


@pytest.mark.parametrize("precision", ["fp16", "fp4", "fp4-dq", "int8"])
def test_other_precision(tmp_path: Path, precision: str) -> None:
    model = write_tiny_model(tmp_path / "llama", FAMILIES["llama"])
    assert_plan_is_measurement(point(model, precision))


def test_int8_keeps_its_inputs_past_checkpointing(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "llama", FAMILIES["llama"], num_hidden_layers=4)
    points = [point(model, precision, checkpointing=True, seq_len=256) for precision in ("bf16", "int8")]
    bf16, int8 = (trace(one, "cpu").memory.breakdown["activations"] for one in points)
    assert int8 > 1.5 * bf16
    assert_plan_is_measurement(points[1])


@pytest.mark.parametrize("recipe", ["peft", "trainer"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["saved", "checkpointed"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "nf4-dq"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "bloom", "phi"])
def test_autocast(tmp_path: Path, family: str, precision: str, checkpointing: bool, recipe: str) -> None:
    model = write_tiny_model(tmp_path / family, FAMILIES[family])
    assert_plan_is_measurement(point(model, precision, checkpointing, autocast="bf16", recipe=recipe))


LLAMA4_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""peft's all-linear takes Llama 4's router for a linear layer, which returns two tensors."""


def write_other(folder: Path, family: str) -> tuple[str, dict]:
    """Return a tiny model of another family and the adapters it takes."""
    hub_id, changes = OTHER_FAMILIES[family]
    # peft adapts stacked experts without dropout only.
    lora = {"lora_dropout": 0.0}
    if family.startswith("llama4"):
        lora["target_modules"] = LLAMA4_LAYERS
    return write_tiny_model(folder / family, hub_id, **changes), lora


@pytest.mark.parametrize("checkpointing", [False, True], ids=["saved", "checkpointed"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "nf4", "nf4-dq"])
@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_other_family(tmp_path: Path, family: str, precision: str, checkpointing: bool) -> None:
    """Experts, linear attention, and models that also see and hear."""
    model, lora = write_other(tmp_path, family)
    assert_plan_is_measurement(point(model, precision, checkpointing, lora=lora))


@pytest.mark.parametrize("recipe", ["trainer", "trl"])
@pytest.mark.parametrize("family", [name for name in OTHER_FAMILIES if not name.startswith("llama4")])
def test_other_family_under_autocast(tmp_path: Path, family: str, recipe: str) -> None:
    model, lora = write_other(tmp_path, family)
    case = point(model, "nf4-dq", recipe == "trainer", lora=lora, autocast="bf16", recipe=recipe)
    assert_plan_is_measurement(case)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["saved", "checkpointed"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "nf4-dq"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "bloom", "phi"])
def test_trl(tmp_path: Path, family: str, precision: str, checkpointing: bool) -> None:
    model = write_tiny_model(tmp_path / family, FAMILIES[family])
    assert_plan_is_measurement(point(model, precision, checkpointing, autocast="bf16", recipe="trl"))


@pytest.mark.parametrize("family", ONCE_FAMILIES)
def test_family_in_one_configuration(tmp_path: Path, family: str) -> None:
    model = write_tiny_model(tmp_path / family, ONCE_FAMILIES[family])
    assert_plan_is_measurement(point(model, "bf16", lora={"lora_dropout": 0.0}))


def test_every_family_of_the_catalog_is_here_or_named_as_not_tested() -> None:
    tested = {*FAMILIES.values(), *(hub_id for hub_id, _ in OTHER_FAMILIES.values()), *ONCE_FAMILIES.values()}
    of_tests = {find_model(hub_id).config["model_type"] for hub_id in tested}
    of_catalog = {model.config["model_type"] for model in catalog_models()}
    assert of_catalog == of_tests | NOT_HELD
    assert not of_tests & NOT_HELD
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert f"for {len(of_tests)} of the {len(of_catalog)} architectures of the catalog" in readme


def test_full_fine_tuning(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "llama", FAMILIES["llama"])
    assert_plan_is_measurement(point(model, "bf16").model_copy(update={"lora": None}))


def seeing(model: str, precision: str = "bf16", lora: bool = True, **settings) -> Point:
    vision = VisionSettings(**{"image_size": "112x84"} | settings.pop("vision", {}))
    sizes = {"seq_len": 288, "per_device_train_batch_size": 1, "gradient_checkpointing": False}
    return Point(
        model=model,
        precision=precision,
        lora=LoraSettings(r=4, lora_dropout=0.0) if lora else None,
        train=TrainSettings(**sizes | settings),
        vision=vision,
    )


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_family_with_an_image_in_each_sequence(tmp_path: Path, family: str) -> None:
    assert_plan_is_measurement(seeing(write_tiny_vision_model(tmp_path / family, family)))


FROZEN = {"freeze_vision_tower": True, "freeze_multi_modal_projector": True}


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "nf4", "gradient_checkpointing": True, "vision": FROZEN},
        {"lora": False, "vision": {"freeze_vision_tower": True}},
        {"vision": {"num_images": 2}, "recipe": "trainer"},
    ],
    ids=str,
)
def test_setting_of_images(tmp_path: Path, settings: dict) -> None:
    assert_plan_is_measurement(seeing(write_tiny_vision_model(tmp_path / "model", "qwen2_5_vl"), **settings))


def test_frozen_tower_has_no_adapters_and_keeps_nothing_for_backward(tmp_path: Path) -> None:
    model = write_tiny_vision_model(tmp_path / "model", "qwen2_5_vl")
    trained, frozen = (trace(seeing(model, vision=part), "cpu") for part in ({}, FROZEN))
    # Two blocks of qkv (32 -> 96), proj (32 -> 32), gate, up and down (32 <-> 64) and two layers of the
    # merger (128 -> 128, 128 -> 64), rank 4: 2 * (128 + 64 + 3 * 96) * 4 + (256 + 192) * 4.
    assert trained.facts.trainable_params - frozen.facts.trainable_params == 2 * 480 * 4 + 448 * 4
    assert frozen.memory.breakdown["activations"] < trained.memory.breakdown["activations"]


def test_images_that_a_sequence_has_no_room_for_are_refused(tmp_path: Path) -> None:
    model = write_tiny_vision_model(tmp_path / "model", "qwen2_5_vl")
    # 1,120 x 560 pixels are 40 x 20 tokens of 28 x 28 pixels, and a token of text before them.
    with pytest.raises(StepError, match=r"1 of 1120x560 take 801 tokens, more than seq_len 288"):
        trace(seeing(model, vision={"image_size": "1120x560"}), "cpu")
