"""Plans of known models, worked out by hand, and properties that every plan has."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import FAMILIES, write_tiny_model

from qbench.planner.plan import plan
from qbench.records.record import Record
from qbench.scenario.schema import LoraSettings, Point, TrainSettings
from qbench.units import GIB

# Llama 2 7B: hidden 4096, MLP 11008, 32 layers, vocabulary 32000, a head of its own.
ATTENTION, MLP = 4096 * 4096, 4096 * 11_008
LINEAR = 32 * (4 * ATTENTION + 3 * MLP)
TABLES = 2 * 32_000 * 4096 + 65 * 4096
"""Embedding, head, and two norms a layer and a last one."""

ROTARY = 2 * 64 * 4
"""Two buffers of 64 frequencies in fp32."""


def plan_llama_2_7b(precision: str) -> Record:
    return plan(Point(model="meta-llama/Llama-2-7b-hf", precision=precision, train=TrainSettings(seq_len=8)))


def test_llama_2_7b_in_bf16_is_12_55_gib() -> None:
    record = plan_llama_2_7b("bf16")
    weights = record.detail["static_breakdown_bytes"]["weights"]
    assert LINEAR + TABLES == 6_738_415_616
    # The two rotary buffers are rounded up to 512 B each.
    assert weights == 2 * (LINEAR + TABLES) + 2 * 512
    assert f"{weights / GIB:.2f}" == "12.55"
    assert record.detail["static_breakdown_bytes"]["quant_state"] == 0
    # All-linear at r=16 in fp32: A and B of each layer have 16 x (in + out) elements.
    adapters = 32 * 16 * (4 * (4096 + 4096) + 3 * (4096 + 11_008))
    assert record.metrics["trainable_params"] == adapters == 39_976_960
    assert record.detail["static_breakdown_bytes"]["adapters"] == 4 * adapters


def test_llama_2_7b_in_nf4_dq_is_below_4_2_gib() -> None:
    record = plan_llama_2_7b("nf4-dq")
    base, static = record.detail["base_weights"], record.detail["static_breakdown_bytes"]
    assert record.detail["model"]["quantized_modules"] == 32 * 7 == 224
    assert record.detail["model"]["quantized_types"] == {"Linear4bit nf4 double": 224}
    assert base["quantized_params"] == LINEAR == 6_476_005_376
    assert base["quantized_bytes"] == LINEAR // 2
    # Absmax in 8 bit for 64 weights, fp32 for 256 of those; and in each layer two code books (16 and 256 x
    # fp32) and one fp32 offset.
    small = 64 + 1024 + 4
    attention = ATTENTION // 64 + 4 * ATTENTION // 64 // 256 + small
    mlp = MLP // 64 + 4 * MLP // 64 // 256 + small
    # The process keeps one more code book of 256 x fp32 (bitsandbytes/functional.py, name2qmap).
    assert base["quant_state_bytes"] == 32 * (4 * attention + 3 * mlp) + 1024
    # Embedding, head and norms are fp32 after peft's preparation.
    assert base["unquantized_bytes"] == 4 * TABLES + ROTARY
    # On CUDA a block is not split for a MiB or less, so that some tensors hold more than they asked for.
    asked = base["quantized_bytes"] + base["unquantized_bytes"]
    assert asked < static["weights"] < 1.005 * asked
    assert static["weights"] + static["quant_state"] < 4.2 * GIB
    assert record.detail["model"]["dtypes"]["lm_head"] == "float32"


def test_bloom_560m_of_the_classic_example() -> None:
    # github.com/huggingface/peft, the 4-bit example: 24 layers of query_key_value, 1024 to 3 x 1024.
    lora = LoraSettings(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=("query_key_value",))
    point = Point(
        model="bigscience/bloom-560m", precision="nf4-dq", lora=lora, train=TrainSettings(seq_len=64)
    )
    metrics = plan(point).metrics
    assert metrics["trainable_params"] == 24 * 8 * (1024 + 3 * 1024) == 786_432
    assert metrics["total_params"] == 559_214_592 + 786_432 == 560_001_024


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "llama", FAMILIES["llama"])


def plan_tiny(model: str, precision: str = "bf16", r: int = 8, **train: object) -> Record:
    settings = TrainSettings(**{"seq_len": 64, "per_device_train_batch_size": 2} | train)
    return plan(Point(model=model, precision=precision, lora=LoraSettings(r=r), train=settings))


@pytest.mark.parametrize("optim", ["adamw_torch", "paged_adamw_8bit"])
@pytest.mark.parametrize("recipe", ["plain", "peft", "trainer"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["saved", "checkpointed"])
@pytest.mark.parametrize("precision", ["bf16", "nf4-dq"])
def test_breakdown_sums_to_the_peak(
    tiny_llama: str, precision: str, checkpointing: bool, recipe: str, optim: str
) -> None:
    record = plan_tiny(
        tiny_llama, precision, gradient_checkpointing=checkpointing, recipe=recipe, optim=optim
    )
    metrics = record.metrics
    assert sum(metrics["breakdown_bytes"].values()) == metrics["peak_allocated_bytes"]
    assert all(size >= 0 for size in metrics["breakdown_bytes"].values())
    static = record.detail["static_breakdown_bytes"]
    assert sum(static.values()) == metrics["static_bytes"] < metrics["peak_allocated_bytes"]
    assert max(record.detail["phases"].values()) == metrics["peak_allocated_bytes"]
    assert metrics["peak_allocated_bytes"] <= metrics["peak_reserved_bytes"] < metrics["device_bytes"]


@pytest.mark.parametrize("precision", ["bf16", "nf4-dq"])
@pytest.mark.parametrize(
    ("setting", "values"),
    [("per_device_train_batch_size", [1, 2, 4, 8]), ("seq_len", [16, 64, 128, 256]), ("r", [1, 8, 16, 128])],
)
def test_more_of_it_takes_more_memory(
    tiny_llama: str, precision: str, setting: str, values: list[int]
) -> None:
    peaks = [
        plan_tiny(tiny_llama, precision, **{setting: value}).metrics["peak_allocated_bytes"]
        for value in values
    ]
    assert peaks == sorted(set(peaks))


def test_quantized_base_is_smaller_and_adapters_are_the_same(tiny_llama: str) -> None:
    plans = {precision: plan_tiny(tiny_llama, precision) for precision in ("fp32", "bf16", "nf4", "nf4-dq")}
    static = {name: record.detail["static_breakdown_bytes"] for name, record in plans.items()}
    packed = {name: record.detail["base_weights"]["quantized_bytes"] for name, record in plans.items()}
    # The seven layers twice: 64 x 64 and 64 x 32 twice each, then 64 x 160 three times.
    linear = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160)
    assert packed == {"fp32": 0, "bf16": 0, "nf4": linear // 2, "nf4-dq": linear // 2}
    assert static["nf4"]["weights"] < static["bf16"]["weights"] < static["fp32"]["weights"]
    assert static["nf4"]["weights"] == static["nf4-dq"]["weights"]
    assert static["bf16"]["quant_state"] == 0 < static["nf4"]["quant_state"]
    assert len({record.metrics["trainable_params"] for record in plans.values()}) == 1
    assert len({sizes["adapters"] for sizes in static.values()}) == 1


def test_plan_says_what_it_is(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path, FAMILIES["qwen2"])
    record = plan(Point(model=model, train=TrainSettings(seq_len=300)), "cpu", run_id="mine")
    assert (record.run_id, record.kind, record.outcome) == ("mine", "plan", "ok")
    assert record.environment["device"] == "cpu"
    # What only CUDA has is unknown on the CPU, not zero.
    assert record.metrics.get("peak_reserved_bytes") is None
    assert "fits" not in record.detail
    assert record.detail["caveats"] == [
        "seq_len 300 is beyond the model's 256 positions; memory is right, quality may not be"
    ]


def test_quantization_that_passes_most_of_a_model_over_is_told(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path, "mistralai/Mixtral-8x7B-v0.1")
    lora = LoraSettings(lora_dropout=0, target_modules=("q_proj",))
    record = plan(Point(model=model, precision="nf4", lora=lora, train=TrainSettings(seq_len=8)), "cpu")
    # Two layers of four experts, 3 x 64 x 160 each, and a router of 4 x 64; embedding and head of 512 x 64.
    passed_over = 2 * (4 * 3 * 64 * 160 + 4 * 64) + 2 * 512 * 64
    # Attention is quantized: 64 x 64 for queries and output, 32 x 64 for keys and values. Norms are five.
    total = passed_over + 2 * (2 * 64 * 64 + 2 * 32 * 64) + 5 * 64
    assert round(100 * passed_over / total) == 93
    (told,) = [text for text in record.detail["caveats"] if "unquantized" in text]
    assert told.startswith(
        "93 % of the base weights stay unquantized: model.layers.*.mlp.experts.gate_up_proj ("
    )
