"""Judged and generated answers, and scores of texts: values at the start, rows, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from tiny import FAMILIES, tiny_point, write_tiny_model

from qbench.errors import StepError
from qbench.planner.trace import trace
from qbench.step.training_step import build_step


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_model(tmp_path_factory.mktemp("model"), FAMILIES["qwen2"])


@pytest.mark.parametrize(
    "way", [{"recipe": "trl"}, {"recipe": "axolotl", "lora_kernels": "none"}, {"recipe": "llama-factory"}]
)
def test_untrained_adapters_judge_as_their_reference(model: str, way: dict[str, Any]):
    # All log-ratios are 0, and so is the distance: 1 - sigmoid(0) = 1/2 for good answers and for bad ones.
    step = build_step(tiny_point(model, "fp32", task="kto", **way), "cpu")
    assert len(step.batches[0]) == 7
    assert step.run().item() == pytest.approx(0.5, abs=1e-6)
    assert step.run().item() < 0.5


def test_rewards_of_pairs_and_classes_of_texts(model: str):
    reward = build_step(tiny_point(model, "fp32", recipe="trl", task="reward"), "cpu")
    assert reward.batches[0]["input_ids"].shape == (4, 32)
    # -log(sigmoid(x)) of differences about 0.
    assert reward.run().item() == pytest.approx(math.log(2), abs=0.2)
    classes = build_step(tiny_point(model, "fp32", recipe="trainer", task="sequence_classification"), "cpu")
    assert classes.batches[0]["labels"].shape == (2,)
    assert classes.run().item() == pytest.approx(math.log(2), abs=0.2)
    # peft trains the head of scores in full beside the adapters: 64 weights for each of one and two scores.
    assert classes.facts.trainable_params - reward.facts.trainable_params == 64


def test_generated_answers_start_with_ratios_of_one(model: str):
    # Advantages are -1 and 1, of as many tokens: they add up to 0.
    way = {"recipe": "trl", "task": "grpo", "max_completion_length": 8}
    step = build_step(tiny_point(model, "fp32", **way), "cpu")
    assert step.run().item() == pytest.approx(0, abs=1e-6)


def test_generation_holds_keys_and_values_of_all_answers(model: str):
    # 16 passes of 2 rows: 2 tensors of 2 heads, 1,024 tokens and 16 values in bf16, in 2 layers.
    way = {"recipe": "trl", "autocast": "bf16", "seq_len": 1024, "gradient_accumulation_steps": 16}
    memory = trace(tiny_point(model, task="grpo", gradient_checkpointing=True, **way), "cuda", None).memory
    assert memory.phases["forward"] - memory.static_bytes > 32 * 2 * 2 * 1024 * 16 * 2 * 2


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"task": "kto", "per_device_train_batch_size": 1}, "at least 2"),
        ({"task": "reward", "recipe": "llama-factory"}, "another head"),
        ({"task": "reward", "loss_type": "chunked"}, "takes loss_type full_logits"),
        ({"task": "grpo", "recipe": "trainer"}, "is planned under recipe trl"),
        ({"task": "grpo", "max_completion_length": 32}, "needs max_completion_length below seq_len"),
    ],
)
def test_what_is_not_planned_is_refused(model: str, settings: dict[str, Any], reason: str):
    with pytest.raises(StepError, match=reason):
        build_step(tiny_point(model, **{"recipe": "trl", **settings}), "meta")
