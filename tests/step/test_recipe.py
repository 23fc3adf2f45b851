"""What each recipe does to the model before and after the adapters are added."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FAMILIES, tiny_point, write_tiny_model

from qbench.step.recipe import keeps_outputs, recipe_caveats
from qbench.step.training_step import build_step

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


def build(folder: Path, precision: str, **train: Any) -> Any:
    model = write_tiny_model(folder, FAMILIES["qwen2"])
    return build_step(tiny_point(model, precision, **train), "meta").model.get_base_model()


def dtypes(model: Any) -> dict[str, torch.dtype]:
    """Return the dtypes of the parts that stay unquantized."""
    layer = model.model.layers[0]
    return {
        "embeddings": model.get_input_embeddings().weight.dtype,
        "norm": layer.input_layernorm.weight.dtype,
        "bias": layer.self_attn.q_proj.bias.dtype,
    }


@pytest.mark.parametrize("precision", ["nf4", "nf4-dq", "fp4", "int8"])
@pytest.mark.parametrize("recipe", ["peft", "trainer"])
def test_pefts_preparation_makes_the_unquantized_part_fp32(
    tmp_path: Path, precision: str, recipe: str
) -> None:
    assert set(dtypes(build(tmp_path, precision, recipe=recipe)).values()) == {torch.float32}


@pytest.mark.parametrize("precision", ["nf4", "nf4-dq", "int8"])
def test_plain_leaves_it_in_16_bit(tmp_path: Path, precision: str) -> None:
    assert set(dtypes(build(tmp_path, precision, recipe="plain")).values()) == {torch.bfloat16}


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
@pytest.mark.parametrize("recipe", ["plain", "peft", "trainer"])
def test_base_that_is_not_quantized_is_never_upcast(
    tmp_path: Path, precision: str, dtype: torch.dtype, recipe: str
) -> None:
    assert set(dtypes(build(tmp_path, precision, recipe=recipe)).values()) == {dtype}


@pytest.mark.parametrize("precision", ["bf16", "nf4"])
@pytest.mark.parametrize("recipe", ["plain", "peft", "trainer"])
def test_base_is_frozen(tmp_path: Path, precision: str, recipe: str) -> None:
    model = build(tmp_path, precision, recipe=recipe)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if "lora_" in name
    }


@pytest.mark.parametrize("precision", ["bf16", "nf4"])
@pytest.mark.parametrize("recipe", ["plain", "peft", "trainer"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointing_is_the_points_choice_alone(
    tmp_path: Path, precision: str, recipe: str, checkpointing: bool
) -> None:
    model = build(tmp_path, precision, recipe=recipe, gradient_checkpointing=checkpointing)
    assert [layer.gradient_checkpointing for layer in model.model.layers] == [checkpointing] * 2


@pytest.mark.parametrize(
    ("settings", "is_reentrant"),
    [
        ({"recipe": "peft"}, False),
        ({"recipe": "axolotl"}, True),
        ({"recipe": "llama-factory"}, True),
        ({"recipe": "axolotl", "checkpoint_impl": "no_reentrant"}, False),
        ({"recipe": "plain", "checkpoint_impl": "reentrant"}, True),
    ],
)
def test_the_form_of_checkpointing_is_the_recipes_unless_given(
    tmp_path: Path, settings: dict[str, Any], is_reentrant: bool
) -> None:
    model = build(tmp_path, "bf16", gradient_checkpointing=True, **settings)
    # A partial of torch.utils.checkpoint.checkpoint.
    assert model.model.layers[0]._gradient_checkpointing_func.keywords["use_reentrant"] is is_reentrant


@pytest.mark.parametrize(
    ("recipe", "biases", "norms"),
    [
        ("peft", torch.float32, torch.float32),
        ("axolotl", torch.float32, torch.bfloat16),
        ("llama-factory", torch.bfloat16, torch.bfloat16),
    ],
)
def test_each_recipe_casts_what_is_not_quantized(
    tmp_path: Path, recipe: str, biases: torch.dtype, norms: torch.dtype
) -> None:
    # Qwen2's products have biases; axolotl takes back norms, embeddings and head alone.
    model = build(tmp_path, "nf4", recipe=recipe)
    layer = model.model.layers[0]
    assert layer.self_attn.q_proj.bias.dtype == biases
    for weight in (layer.input_layernorm.weight, model.model.embed_tokens.weight, model.lm_head.weight):
        assert weight.dtype == norms


@pytest.mark.parametrize("loss", ["chunked", "liger", "cut_cross_entropy"])
def test_losses_without_logits_give_the_same_gradients(tmp_path: Path, loss: str) -> None:
    def gradients(loss: str) -> tuple[float, torch.Tensor]:
        point = tiny_point(
            write_tiny_model(tmp_path, FAMILIES["qwen2"]),
            "fp32",
            {"lora_dropout": 0.0},
            recipe="trainer",
            loss_type=loss,
        )
        step = build_step(point, "cpu")
        found: list[torch.Tensor] = []

        def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            found.extend(p.grad.clone() for group in optimizer.param_groups for p in group["params"])

        step.optimizer.register_step_pre_hook(note)
        value = step.run().item()
        return value, torch.cat([each.flatten() for each in found])

    value, gradient = gradients(loss)
    expected, of_logits = gradients("full_logits")
    assert value == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(gradient, of_logits, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "kept"), [("plain", True), ("peft", True), ("trainer", False), ("trl", False)]
)
def test_hand_written_loops_keep_their_outputs(recipe: str, kept: bool) -> None:
    assert keeps_outputs(tiny_point("any", recipe=recipe)) is kept


def test_trl_makes_adapters_bf16_on_a_quantized_base_alone(tmp_path: Path) -> None:
    def adapter_dtypes(precision: str) -> dict[str, torch.dtype]:
        model = write_tiny_model(tmp_path, FAMILIES["qwen2"])
        step = build_step(tiny_point(model, precision, {"use_dora": True}, recipe="trl"), "meta")
        return {
            "factors": step.model.get_parameter(f"{LAYER}.lora_A.default.weight").dtype,
            "magnitude": step.model.get_parameter(f"{LAYER}.lora_magnitude_vector.default.weight").dtype,
        }

    assert adapter_dtypes("nf4") == {"factors": torch.bfloat16, "magnitude": torch.float32}
    assert adapter_dtypes("bf16") == {"factors": torch.float32, "magnitude": torch.float32}


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_trl_leaves_the_unquantized_part_in_16_bit(tmp_path: Path, precision: str) -> None:
    assert set(dtypes(build(tmp_path, precision, recipe="trl")).values()) == {torch.bfloat16}


def test_what_departs_from_trls_defaults_is_said() -> None:
    follows, *departs = recipe_caveats(tiny_point("any", recipe="trl"))
    assert follows.startswith("recipe trl follows trl 1.16")
    assert departs == [
        "SFTConfig sets bf16=True by default (--autocast bf16); autocast none corresponds to bf16=False"
    ]
    assert len(list(recipe_caveats(tiny_point("any", recipe="trl", autocast="bf16")))) == 1
    assert list(recipe_caveats(tiny_point("any", recipe="peft"))) == []


@pytest.mark.parametrize("recipe", ["plain", "peft", "trainer", "trl"])
def test_trainer_alone_clips_gradients(tmp_path: Path, recipe: str) -> None:
    model = write_tiny_model(tmp_path, FAMILIES["qwen2"])
    step = build_step(tiny_point(model, "fp32", {"lora_alpha": 4000}, recipe=recipe, optim="sgd"), "cpu")
    norms: list[float] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        grads = [p.grad.norm() for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.stack(grads).norm().item())

    step.optimizer.register_step_pre_hook(note)
    step.run()
    clipped = norms[0] == pytest.approx(1.0, rel=1e-3)
    assert clipped is (recipe in ("trainer", "trl"))
    assert clipped or norms[0] > 2
