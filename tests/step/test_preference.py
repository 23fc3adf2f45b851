"""Chosen and rejected answers: the losses' values, what is alive beside them, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from tiny import FAMILIES, tiny_point, write_tiny_model

from qbench.errors import StepError
from qbench.planner.trace import trace
from qbench.step.training_step import build_step

WAYS: list[dict[str, Any]] = [
    {"recipe": "trl"},
    {"recipe": "axolotl", "lora_kernels": "none"},
    {"recipe": "llama-factory"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_model(tmp_path_factory.mktemp("model"), FAMILIES["qwen2"])


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way["recipe"])
def test_untrained_adapters_are_their_own_reference(model: str, way: dict[str, Any]):
    # Their B is 0, so all log-ratios are 0: -log(sigmoid(0)) = log 2. One step moves them.
    step = build_step(tiny_point(model, "fp32", task="dpo", **way), "cpu")
    assert step.batches[0]["input_ids"].shape == (4, 32)
    assert step.run().item() == pytest.approx(math.log(2), abs=1e-6)
    assert step.run().item() < math.log(2)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way["recipe"])
def test_checkpointing_and_adapters_are_on_again_after_the_reference(model: str, way: dict[str, Any]):
    point = tiny_point(model, "fp32", task="dpo", **way | {"gradient_checkpointing": True})
    step = build_step(point, "cpu")
    step.run()
    layers = [one for one in step.model.modules() if hasattr(one, "gradient_checkpointing")]
    assert any(layer.gradient_checkpointing for layer in layers)
    assert not any(getattr(one, "disable_adapters", False) is True for one in step.model.modules())


def test_the_reference_has_logits_beside_those_of_the_policy(model: str):
    way = {"recipe": "llama-factory", "autocast": "bf16", "seq_len": 128}
    orpo, dpo = (
        trace(tiny_point(model, task=task, **way), "cuda", None).memory.phases["loss"]
        for task in ("orpo", "dpo")
    )
    # Of four rows of 128 tokens and 512 words: logits of the reference and their log-softmax, in fp32 and in
    # slices of one token less.
    logits = 4 * 128 * 512 * 4
    assert dpo - orpo >= logits + 4 * 127 * 512 * 4


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"recipe": "peft"}, "runs under recipes of a Trainer"),
        ({"recipe": "axolotl", "lora_kernels": "axolotl"}, "takes lora_kernels none"),
        ({"recipe": "trainer", "loss_type": "liger"}, "takes loss_type full_logits or chunked"),
        ({"recipe": "trl", "task": "orpo"}, "is orpo's in LLaMA-Factory alone"),
    ],
)
def test_what_is_not_planned_is_refused(model: str, settings: dict[str, Any], reason: str):
    with pytest.raises(StepError, match=reason):
        build_step(tiny_point(model, **{"task": "dpo", **settings}), "meta")


def test_without_adapters_the_reference_is_a_second_model(model: str):
    sft, dpo = (
        trace(tiny_point(model, recipe="trl", task=task).model_copy(update={"lora": None}), "cuda")
        for task in ("sft", "dpo")
    )
    # In bf16, and of ids, mask and labels two rows of 32 tokens more each; all in blocks of 512 bytes.
    params = sft.facts.total_params
    more = dpo.memory.static_bytes - sft.memory.static_bytes
    assert more == pytest.approx(2 * params + 3 * 2 * 32 * 8, rel=0.05)
    step = build_step(
        tiny_point(model, "fp32", recipe="trl", task="dpo").model_copy(update={"lora": None}), "cpu"
    )
    assert math.isfinite(step.run().item())
