"""Target modules reach what they name or are refused, and adapters are as peft makes them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FAMILIES, tiny_point, write_tiny_model

from qbench.errors import StepError
from qbench.planner.trace import trace
from qbench.step.training_step import TrainingStep, build_step

LAYERS = "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"


def build(folder: Path, family: str = "llama", precision: str = "bf16", **lora: Any) -> TrainingStep:
    model = write_tiny_model(folder / family, FAMILIES[family])
    return build_step(tiny_point(model, precision, lora), "meta")


def adapted(step: TrainingStep) -> list[str]:
    """Return the names of the layers that have an adapter."""
    prefix = "base_model.model."
    return [
        name.removeprefix(prefix) for name, module in step.model.named_modules() if hasattr(module, "lora_A")
    ]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("attention",), f"target_modules attention match no layer; the model has {LAYERS}"),
        (
            ("q_porj",),
            f"target_modules q_porj match no layer; the model has {LAYERS}; nearest: q_proj, ",
        ),
        # peft would take the one that matches, and adapt half of what was asked for.
        (("q_proj", "wrong", "worse"), f"target_modules wrong, worse match no layer; the model has {LAYERS}"),
        # A module that is no layer, and a layer without a LoRA.
        (("self_attn",), f"target_modules self_attn match no layer; the model has {LAYERS}"),
        (("input_layernorm",), f"target_modules input_layernorm match no layer; the model has {LAYERS}"),
        # Not a regular expression either.
        ("(", f"target_modules ( match no layer; the model has {LAYERS}"),
    ],
)
@pytest.mark.parametrize("precision", ["bf16", "nf4"])
def test_target_that_matches_nothing_is_refused(
    tmp_path: Path, precision: str, targets: str | tuple[str, ...], message: str
) -> None:
    with pytest.raises(StepError) as caught:
        build(tmp_path, precision=precision, target_modules=targets)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("precision", ["fp32", "nf4-dq", "int8"])
def test_all_linear_is_every_layer_but_the_head(tmp_path: Path, precision: str) -> None:
    names = adapted(build(tmp_path, precision=precision, target_modules="all-linear"))
    assert len(names) == 2 * 7
    assert {name.rsplit(".", 1)[-1] for name in names} == set(LAYERS.split(", ")) - {"lm_head"}


def test_all_linear_reaches_conv1d_of_gpt2(tmp_path: Path) -> None:
    names = adapted(build(tmp_path, "gpt2", target_modules="all-linear"))
    assert names == [
        f"transformer.h.{layer}.{name}"
        for layer in (0, 1)
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (("q_proj",), ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]),
        ("q_proj", ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]),
        (r".*\.1\..*\.q_proj", ["model.layers.1.self_attn.q_proj"]),
        (("layers.1.mlp.up_proj", "o_proj"), None),
        (("lm_head",), ["lm_head"]),
    ],
)
def test_targets_by_name_path_and_pattern(
    tmp_path: Path, targets: str | tuple[str, ...], names: list[str] | None
) -> None:
    # Mistral's head has weights of its own; peft warns about adapting a tied one.
    found = adapted(build(tmp_path, "mistral", target_modules=targets))
    assert found == names if names else len(found) == 3


def test_adapters_are_fp32_and_the_only_ones_that_train(tmp_path: Path) -> None:
    step = build(tmp_path, target_modules=("q_proj",), r=8)
    trainable = {name: p for name, p in step.model.named_parameters() if p.requires_grad}
    # Two layers with A (8 x 64) and B (64 x 8).
    assert [tuple(p.shape) for p in trainable.values()] == [(8, 64), (64, 8)] * 2
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in trainable.items())
    assert step.facts.trainable_params == 2 * 2 * 8 * 64


@pytest.mark.parametrize(("use_rslora", "scaling"), [(False, 32 / 16), (True, 32 / 16**0.5)])
def test_scaling_follows_the_settings(tmp_path: Path, use_rslora: bool, scaling: float) -> None:
    step = build(tmp_path, target_modules=("q_proj",), r=16, lora_alpha=32, use_rslora=use_rslora)
    layer = step.model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    assert layer.scaling["default"] == scaling


def test_dora_adds_one_magnitude_for_each_output(tmp_path: Path) -> None:
    plain, dora = (
        build(tmp_path, target_modules=("k_proj",), use_dora=use_dora).facts.trainable_params
        for use_dora in (False, True)
    )
    # Two layers whose k_proj has 2 heads of 16.
    assert dora - plain == 2 * 32


@pytest.mark.parametrize(
    "pattern", ["(.*)*(.*)*(.*)*x_proj", "([a-z_.0-9]+)+Z", r"(\w|\w|\.)*!", ".*.*.*.*.*.*.*.*!"]
)
def test_a_pattern_that_backtracks_ends(tmp_path: Path, pattern: str) -> None:
    start = time.process_time()
    with pytest.raises(StepError, match=r"match no layer|no match within 2 s"):
        build(tmp_path, target_modules=pattern)
    assert time.process_time() - start < 10


def test_a_repeated_group_adapts_what_it_matches(tmp_path: Path) -> None:
    """Alternatives of which one begins the other, repeated: quick here, and for ever with `re`."""
    by_group = build(tmp_path, target_modules=r"(\w+\.|\w)*q_proj")
    assert adapted(by_group) == adapted(build(tmp_path, target_modules=["q_proj"])) != []


def test_modules_to_save_are_copied_and_trained(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path, FAMILIES["qwen2"])
    plain, saved = (
        trace(tiny_point(model, lora={"modules_to_save": names}), "cuda") for names in ((), ("embed_tokens",))
    )
    # 512 words of 64 dimensions.
    assert saved.facts.trainable_params - plain.facts.trainable_params == 512 * 64
    assert saved.memory.phases["load"] == plain.memory.phases["load"]
    assert saved.memory.phases["adapters"] - plain.memory.phases["adapters"] == 512 * 64 * 2
    with pytest.raises(StepError, match="modules_to_save embed_token is not a module"):
        build_step(tiny_point(model, lora={"modules_to_save": ("embed_token",)}), "meta")
