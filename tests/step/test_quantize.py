"""Packed weights and their state, by hand; on meta and on the CPU they are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from tiny import FAMILIES, tiny_point, write_tiny_model

from qbench.planner.trace import trace
from qbench.scenario.distributed import QuantizationSettings
from qbench.step.model import build_base_model, load_config
from qbench.step.quantize import is_quantized_weight, make_quantizer, quantization_config
from qbench.step.training_step import build_step

QUANTIZED = ["nf4", "nf4-dq", "fp4", "fp4-dq", "int8"]


def build(folder: Path, family: str, precision: str, device: str) -> Any:
    model = write_tiny_model(folder / family, FAMILIES[family])
    point = tiny_point(model, precision)
    return build_base_model(point, torch.device(device), load_config(point))


@pytest.mark.parametrize(
    ("precision", "kind", "double"),
    [("nf4", "nf4", False), ("nf4-dq", "nf4", True), ("fp4", "fp4", False), ("fp4-dq", "fp4", True)],
)
def test_4bit_settings(precision: str, kind: str, double: bool) -> None:
    config = quantization_config(precision)
    assert config is not None
    assert (config.load_in_4bit, config.load_in_8bit) == (True, False)
    assert config.bnb_4bit_quant_type == kind
    assert config.bnb_4bit_use_double_quant is double
    assert config.bnb_4bit_compute_dtype == torch.bfloat16


def test_8bit_settings() -> None:
    config = quantization_config("int8")
    assert config is not None
    assert (config.load_in_4bit, config.load_in_8bit) == (False, True)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_full_precision_has_no_quantizer(precision: str) -> None:
    assert quantization_config(precision) is None
    assert make_quantizer(precision) is None


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_nf4_of_a_linear_layer(tmp_path: Path, device: str) -> None:
    layer = build(tmp_path, "llama", "nf4", device).model.layers[0].mlp.up_proj
    # 64 in, 160 out: 10,240 weights, two in a byte, and 160 blocks of 64.
    assert isinstance(layer, bnb.nn.Linear4bit)
    assert (layer.in_features, layer.out_features) == (64, 160)
    assert (tuple(layer.weight.shape), layer.weight.dtype) == ((5120, 1), torch.uint8)
    state = layer.weight.quant_state
    assert (tuple(state.shape), state.blocksize, state.quant_type, state.nested) == (
        (160, 64),
        64,
        "nf4",
        False,
    )
    assert (tuple(state.absmax.shape), state.absmax.dtype) == ((160,), torch.float32)
    assert (tuple(state.code.shape), state.code.dtype) == ((16,), torch.float32)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_double_quantization_of_a_linear_layer(tmp_path: Path, device: str) -> None:
    state = build(tmp_path, "llama", "nf4-dq", device).model.layers[0].mlp.up_proj.weight.quant_state
    assert state.nested
    # The 160 scales in 8 bit, one fp32 for up to 256 of them, a code book of 256, and their mean.
    assert (tuple(state.absmax.shape), state.absmax.dtype) == ((160,), torch.uint8)
    assert (tuple(state.state2.absmax.shape), state.state2.absmax.dtype) == ((1,), torch.float32)
    assert state.state2.blocksize == 256
    assert tuple(state.state2.code.shape) == (256,)
    assert (tuple(state.offset.shape), state.offset.dtype) == ((), torch.float32)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_int8_of_a_linear_layer(tmp_path: Path, device: str) -> None:
    layer = build(tmp_path, "llama", "int8", device).model.layers[0].mlp.up_proj
    assert isinstance(layer, bnb.nn.Linear8bitLt)
    assert (tuple(layer.weight.shape), layer.weight.dtype) == ((160, 64), torch.int8)
    # One fp32 scale for each row.
    assert (tuple(layer.weight.SCB.shape), layer.weight.SCB.dtype) == ((160,), torch.float32)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_nf4_of_conv1d(tmp_path: Path, device: str) -> None:
    # GPT-2 stores [in, out]; the packed layer is an ordinary [out, in] one.
    layer = build(tmp_path, "gpt2", "nf4", device).transformer.h[0].attn.c_attn
    assert isinstance(layer, bnb.nn.Linear4bit)
    assert (layer.in_features, layer.out_features) == (64, 192)
    assert tuple(layer.weight.shape) == (64 * 192 // 2, 1)
    assert tuple(layer.weight.quant_state.shape) == (192, 64)
    assert tuple(layer.weight.quant_state.absmax.shape) == (64 * 192 // 64,)
    assert tuple(layer.bias.shape) == (192,)
    assert layer.bias.dtype == torch.bfloat16


def state_facts(state: Any) -> dict[str, Any]:
    """Return what a quantization state holds, and its nested one; tensors as shape and dtype."""
    facts: dict[str, Any] = {}
    for key in ("absmax", "code", "offset", "shape", "dtype", "blocksize", "quant_type", "nested"):
        value = getattr(state, key)
        facts[key] = (tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else value
    if state.nested:
        facts["state2"] = state_facts(state.state2)
    return facts


def weight_facts(model: torch.nn.Module) -> dict[str, Any]:
    """Return shape, dtype and class of all that a model holds, quantization state included."""
    facts: dict[str, Any] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        facts[name] = (type(tensor).__name__, tuple(tensor.shape), tensor.dtype, tensor.requires_grad)
        state = getattr(tensor, "quant_state", None)
        if state is not None:
            facts[f"{name}.state"] = state_facts(state)
        if getattr(tensor, "SCB", None) is not None:
            facts[f"{name}.SCB"] = (tuple(tensor.SCB.shape), tensor.SCB.dtype)
    return facts


@pytest.mark.parametrize("precision", QUANTIZED)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma3_text"])
def test_meta_and_cpu_models_are_alike(tmp_path: Path, family: str, precision: str) -> None:
    planned = weight_facts(build(tmp_path, family, precision, "meta"))
    assert planned == weight_facts(build(tmp_path, family, precision, "cpu"))


@pytest.mark.parametrize("precision", QUANTIZED)
def test_embedding_and_head_are_not_quantized(tmp_path: Path, precision: str) -> None:
    model = build(tmp_path, "mistral", precision, "meta")
    quantized = [name for name, parameter in model.named_parameters() if is_quantized_weight(parameter)]
    assert len(quantized) == 14
    assert all(".layers." in name for name in quantized)


def test_random_weights_have_the_range_of_the_config(tmp_path: Path) -> None:
    model = build(tmp_path, "llama", "nf4", "cpu")
    weight = model.model.layers[1].mlp.down_proj.weight
    values = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    assert model.config.initializer_range == 0.02
    assert values.float().std().item() == pytest.approx(0.02, rel=0.05)
    assert values.float().mean().item() == pytest.approx(0, abs=0.003)


def test_stacked_experts_are_packed_where_asked(tmp_path: Path) -> None:
    sizes = {"moe_intermediate_size": 96, "num_experts": 4}
    model = write_tiny_model(tmp_path, "Qwen/Qwen3-30B-A3B", **sizes)
    lora = {"lora_dropout": 0.0, "target_modules": ("q_proj", "v_proj")}
    train = {"recipe": "axolotl", "loss_type": "cut_cross_entropy", "gradient_checkpointing": True}
    whole = tiny_point(model, "nf4-dq", lora=lora, autocast="bf16", **train)
    packed = whole.model_copy(update={"quantization": QuantizationSettings(quantize_moe_experts=True)})
    before, after = (trace(point, "cuda", None) for point in (whole, packed))
    # In each of 2 layers 4 experts of gate and up [192, 64] and down [64, 96].
    experts = 2 * 4 * (192 * 64 + 64 * 96)
    assert after.facts.total_params == before.facts.total_params
    assert after.facts.quantized_params - before.facts.quantized_params == experts
    # peft makes 4 bytes each of experts that are not packed, which take half a byte and 1 for 64 of them.
    assert before.memory.static_bytes - after.memory.static_bytes == pytest.approx(3.5 * experts, rel=0.05)
    assert torch.isfinite(build_step(packed, "cpu").run())
