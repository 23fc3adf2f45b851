"""The plan for the CPU against the real step on the CPU: equal to the byte, for every dense family."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny import FAMILIES, write_tiny_model

from qbench.errors import StepError
from qbench.memory.breakdown import MemoryProfile, profile
from qbench.memory.recording import record_steps
from qbench.plan.trace import trace
from qbench.scenario.schema import LoraSettings, Point, TrainSettings
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


@pytest.mark.parametrize("recipe", ["peft", "trainer"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["saved", "checkpointed"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "nf4-dq"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "bloom", "phi"])
def test_autocast(tmp_path: Path, family: str, precision: str, checkpointing: bool, recipe: str) -> None:
    model = write_tiny_model(tmp_path / family, FAMILIES[family])
    assert_plan_is_measurement(point(model, precision, checkpointing, autocast="bf16", recipe=recipe))


EXPERTS = {
    "mixtral": ("mistralai/Mixtral-8x7B-v0.1", {"num_local_experts": 4}),
    "qwen3_moe": (
        "Qwen/Qwen3-30B-A3B",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96},
    ),
    "gpt_oss": ("openai/gpt-oss-20b", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "deepseek_v3": (
        "deepseek-ai/DeepSeek-V3",
        {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 96,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "num_key_value_heads": 4,
        },
    ),
}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["saved", "checkpointed"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "nf4-dq"])
@pytest.mark.parametrize("family", EXPERTS)
def test_mixture_of_experts(tmp_path: Path, family: str, precision: str, checkpointing: bool) -> None:
    hub_id, sizes = EXPERTS[family]
    model = write_tiny_model(tmp_path / family, hub_id, **sizes)
    # peft adapts stacked experts without dropout only.
    assert_plan_is_measurement(point(model, precision, checkpointing, lora={"lora_dropout": 0.0}))


def test_full_fine_tuning(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "llama", FAMILIES["llama"])
    assert_plan_is_measurement(point(model, "bf16").model_copy(update={"lora": None}))
