"""The shipped scenarios: each is valid, asks one question, and says what the documentation says it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from qbench.scenario.expand import expand
from qbench.scenario.load import load_scenario, scenario_folder, shipped_scenarios
from qbench.scenario.schema import Point


def points_of(name: str) -> tuple[Point, ...]:
    return expand(load_scenario(scenario_folder() / f"{name}.yaml"))


@pytest.mark.parametrize("file", shipped_scenarios(), ids=lambda file: file.stem)
def test_each_is_valid_and_asks_one_question(file: Path) -> None:
    scenario = load_scenario(file)
    assert scenario.name == file.stem
    assert scenario.question.endswith("?")
    assert scenario.question.count("?") == 1
    assert file.read_text(encoding="utf-8").startswith(
        "# yaml-language-server: $schema=scenario.schema.json\n"
    )


@pytest.mark.parametrize("file", shipped_scenarios(), ids=lambda file: file.stem)
def test_each_compares_lora_with_qlora_and_holds_the_rest_still(file: Path) -> None:
    points = expand(load_scenario(file))
    others = {
        method: {point.model_copy(update={"precision": "bf16"}) for point in points if point.method == method}
        for method in ("lora", "qlora")
    }
    assert others["lora"] & others["qlora"]


def test_every_question_is_there() -> None:
    assert [file.stem for file in shipped_scenarios()] == [
        "ci",
        "classic-bloom-560m",
        "demo",
        "gpu-validation",
        "hardware-sizing",
        "int8-and-checkpointing",
        "model-size-sweep",
        "qlora-vs-lora-llama2-7b",
        "rank-sweep",
        "sequence-sweep",
    ]


def test_the_demo_trains_a_real_model_on_real_text() -> None:
    points = points_of("demo")
    assert [point.precision for point in points] == ["fp32", "bf16", "nf4", "nf4-dq"]
    assert {point.weights for point in points} == {"pretrained"}
    text = Path(points[0].data).read_text(encoding="utf-8")
    # Enough for the 1 + 4 steps of 256 tokens, at about 4.5 characters a token.
    assert 6_000 < len(text) < 8_192


def test_the_classic_example_is_as_it_is_known() -> None:
    points = points_of("classic-bloom-560m")
    assert [point.precision for point in points] == ["bf16", "nf4-dq"]
    for point in points:
        assert point.model == "bigscience/bloom-560m"
        assert point.lora is not None
        assert point.lora.model_dump(include={"r", "lora_alpha", "lora_dropout", "target_modules"}) == {
            "r": 8,
            "lora_alpha": 16,
            "lora_dropout": 0.05,
            "target_modules": ("query_key_value",),
        }


def test_the_sweeps_reach_as_far_as_they_say() -> None:
    ranks = {point.lora.r for point in points_of("rank-sweep") if point.lora}
    assert (min(ranks), max(ranks)) == (4, 256)
    models = [point.model for point in points_of("model-size-sweep")]
    assert (models[0], models[-1]) == ("Qwen/Qwen2.5-0.5B", "meta-llama/Llama-3.1-405B")
    assert {point.train.gradient_checkpointing for point in points_of("sequence-sweep")} == {True, False}


def test_hardware_sizing_names_gpus() -> None:
    assert len(load_scenario(scenario_folder() / "hardware-sizing.yaml").plan.gpus) >= 5


def test_gpu_validation_covers_both_ends() -> None:
    points = points_of("gpu-validation")
    assert {point.weights for point in points} == {"random"}
    assert {point.train.attn_implementation for point in points} >= {"sdpa", "eager"}
    assert {point.train.gradient_checkpointing for point in points} == {True, False}
    assert {"Qwen/Qwen2.5-0.5B", "meta-llama/Llama-3.1-8B"} <= {point.model for point in points}
