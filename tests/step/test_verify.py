"""What was built is checked against the point, and what the libraries left out is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FAMILIES, tiny_point, write_tiny_model

from qbench.errors import StepError
from qbench.step.training_step import build_step
from qbench.step.verify import ModelFacts, verify_model


def build(folder: Path, precision: str, family: str = "llama", **train: object) -> torch.nn.Module:
    model = write_tiny_model(folder / family, FAMILIES[family])
    return build_step(tiny_point(model, precision, **train), "meta").model


def facts(folder: Path, precision: str, family: str = "llama", **train: object) -> ModelFacts:
    model = write_tiny_model(folder / family, FAMILIES[family])
    return build_step(tiny_point(model, precision, **train), "meta").facts


@pytest.mark.parametrize(
    ("built", "said", "message"),
    [
        ("nf4", "fp4", "precision fp4, but a layer is nf4 without double quantization"),
        ("fp4", "nf4", "precision nf4, but a layer is fp4 without double quantization"),
        ("nf4", "nf4-dq", "precision nf4-dq, but a layer is nf4 without double quantization"),
        ("nf4-dq", "nf4", "precision nf4, but a layer is nf4 with double quantization"),
        ("bf16", "nf4", "precision nf4, but transformers .* quantizes no layer"),
        ("bf16", "int8", "precision int8, but transformers .* quantizes no layer"),
        ("nf4", "bf16", "precision bf16, but 14 layers of .* are quantized"),
        ("int8", "nf4", "precision nf4, but a layer is Linear8bitLt"),
        ("nf4", "int8", "precision int8, but a layer is Linear4bit"),
    ],
)
def test_model_that_is_not_what_the_point_says(tmp_path: Path, built: str, said: str, message: str) -> None:
    model = build(tmp_path, built)
    with pytest.raises(StepError, match=message) as caught:
        verify_model(model, tiny_point("a/model", said))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "nf4", "nf4-dq", "fp4", "fp4-dq", "int8"])
def test_model_that_is_what_the_point_says(tmp_path: Path, precision: str) -> None:
    found = facts(tmp_path, precision)
    quantized = precision not in ("fp32", "bf16", "fp16")
    assert found.adapted_modules == 14
    assert found.quantized_modules == (14 if quantized else 0)
    # Two layers: q and o 64 x 64, k and v 64 x 32, and three 64 x 160.
    linear = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160)
    assert found.quantized_params == (linear if quantized else 0)
    bits = 8 if precision == "int8" else 4
    assert found.quantized_bytes == (linear * bits // 8 if quantized else 0)
    # Packed weights count unpacked, tied ones once: the embedding, and norms of 64.
    assert found.base_params == linear + 512 * 64 + 5 * 64
    # peft counts the same, and the adapters.
    assert found.total_params == found.base_params + found.trainable_params


def test_layer_that_was_replaced_but_never_packed(tmp_path: Path) -> None:
    model = build(tmp_path, "nf4")
    packed = next(module for module in model.modules() if type(module).__name__ == "Linear4bit")
    packed.weight.quant_state = None
    with pytest.raises(StepError, match="precision nf4, but a layer is not quantized yet"):
        verify_model(model, tiny_point("a/model", "nf4"))


def test_target_that_was_passed_over_is_named(tmp_path: Path) -> None:
    model = build(tmp_path, "nf4")
    layer = model.get_submodule("base_model.model.model.layers.1.self_attn.k_proj")
    layer.base_layer = torch.nn.Linear(64, 32, bias=False, device="meta")
    message = (
        r"the target model\.layers\.1\.self_attn\.k_proj is a Linear in torch\.float32 that transformers"
    )
    with pytest.raises(StepError, match=message):
        verify_model(model, tiny_point("a/model", "nf4"))


def test_the_head_may_be_a_target_although_it_is_never_quantized(tmp_path: Path) -> None:
    # Mistral's is not tied to the embedding, so that peft can adapt it.
    assert (
        facts(tmp_path, "nf4", "mistral", lora={"target_modules": ["q_proj", "lm_head"]}).adapted_modules == 3
    )


def test_layer_that_computes_in_another_dtype_is_named(tmp_path: Path) -> None:
    model = build(tmp_path, "nf4-dq")
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj.base_layer")
    layer.compute_dtype = torch.float16
    with pytest.raises(StepError, match=r"set to compute in torch\.float16: model\.layers\.0\.mlp\.up_proj$"):
        verify_model(model, tiny_point("a/model", "nf4-dq"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layer: setattr(layer.state, "has_fp16_weights", True), "made to keep 16-bit weights"),
        (
            lambda layer: setattr(layer.weight, "data", layer.weight.data.to(torch.float16)),
            r"not quantized yet \(torch\.float16\)",
        ),
    ],
)
def test_8_bit_layer_without_8_bit_weights_is_named(
    tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    model = build(tmp_path, "int8")
    change(model.get_submodule("base_model.model.model.layers.0.mlp.up_proj.base_layer"))
    with pytest.raises(StepError, match=f"a layer is {message}: model.layers.0.mlp.up_proj"):
        verify_model(model, tiny_point("a/model", "int8"))


@pytest.mark.parametrize(
    ("precision", "recipe", "said", "message"),
    [
        ("nf4", "plain", "peft", "recipe peft leaves the embeddings of a nf4 base in float32, .* bfloat16"),
        ("nf4", "peft", "plain", "recipe plain leaves the embeddings of a nf4 base in bfloat16, .* float32"),
        ("int8", "trl", "trainer", "recipe trainer leaves the embeddings of a int8 base in float32"),
        ("nf4", "plain", "trl", "recipe trl leaves the adapters of a nf4 base in bfloat16, .* float32"),
    ],
)
def test_dtype_that_the_recipe_does_not_leave_is_named(
    tmp_path: Path, precision: str, recipe: str, said: str, message: str
) -> None:
    model = build(tmp_path, precision, recipe=recipe)
    with pytest.raises(StepError, match=message):
        verify_model(model, tiny_point("a/model", precision, recipe=said))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_what_every_recipe_says(tmp_path: Path, family: str) -> None:
    quantizable = () if family == "falcon" else ("nf4-dq", "int8")
    for precision in ("fp32", "bf16", *quantizable):
        for recipe in ("plain", "peft", "trainer"):
            assert facts(tmp_path, precision, family, recipe=recipe).total_params > 0


def test_falcon_has_linear_layers_of_its_own_that_are_passed_over(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"its linear layers are FalconLinear, .*; use bf16"):
        facts(tmp_path, "nf4", "falcon")


def test_what_is_skipped_is_told_largest_first(tmp_path: Path) -> None:
    found = facts(tmp_path, "nf4", "mistral")
    assert [(group["module"], group["params"]) for group in found.skipped] == [
        ("model.embed_tokens.weight", 512 * 64),
        ("lm_head.weight", 512 * 64),
    ]
    assert found.skipped[0]["share"] == 512 * 64 / found.base_params
    assert found.skipped[0]["reason"].startswith("embeddings")
    assert found.skipped[1]["reason"] == "transformers keeps the output head unquantized"


def test_layer_that_was_passed_over_is_told_whatever_its_size(tmp_path: Path) -> None:
    model = build(tmp_path, "nf4")
    layer = model.get_submodule("base_model.model.model.layers.1.self_attn")
    layer.k_proj = torch.nn.Linear(64, 1, bias=False, device="meta")
    found = verify_model(model, tiny_point("a/model", "nf4"))
    skipped = next(group for group in found.skipped if "k_proj" in group["module"])
    assert skipped["module"] == "model.layers.*.self_attn.k_proj.weight"
    assert skipped["reason"] == "transformers leaves this layer unquantized"
    assert skipped["params"] == 64


def test_last_layer_of_olmo_is_quantized(tmp_path: Path) -> None:
    # Its norms have no weights and its head is tied, so that the last parameter is a layer's. transformers
    # leaves the module of the last parameter in 16 bit, which is the head while it is not tied yet.
    found = facts(tmp_path, "nf4", "olmo")
    assert found.quantized_modules == 2 * 7
    assert [group["module"] for group in found.skipped] == ["model.embed_tokens.weight"]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_nothing_is_skipped_where_nothing_is_quantized(tmp_path: Path, precision: str) -> None:
    assert facts(tmp_path, precision).skipped == ()


def test_dtypes_are_told(tmp_path: Path) -> None:
    assert facts(tmp_path, "nf4", recipe="peft").dtypes == {
        "embeddings": "float32",
        "lm_head": "float32",
        "norms": "float32",
        "adapters": "float32",
    }
    plain = facts(tmp_path, "bf16").dtypes
    assert (plain["embeddings"], plain["norms"], plain["adapters"]) == ("bfloat16", "bfloat16", "float32")


def test_full_fine_tuning_trains_everything(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path, FAMILIES["llama"])
    found = build_step(tiny_point(model).model_copy(update={"lora": None}), "meta").facts
    assert found.trainable_params == found.total_params == found.base_params
    assert found.adapted_modules == 0


def test_stacked_experts_are_told_with_their_share() -> None:
    """gpt-oss-20b: 24 layers x 32 experts x (2880 x 5760 + 2880 x 2880) = 19,110,297,600 weights."""
    found = build_step(tiny_point("openai/gpt-oss-20b", "nf4-dq", lora={"lora_dropout": 0.0}), "meta").facts
    experts = [group for group in found.skipped if "experts" in group["module"]]
    assert sum(group["params"] for group in experts if "bias" not in group["module"]) == 19_110_297_600
    assert all("bitsandbytes passes them over" in group["reason"] for group in experts[:2])


def test_experts_refuse_dropout_with_the_way_out() -> None:
    with pytest.raises(StepError, match="set lora_dropout: 0"):
        build_step(tiny_point("mistralai/Mixtral-8x7B-v0.1"), "meta")
