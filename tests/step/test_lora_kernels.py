"""axolotl's fused LoRA kernels: same values as without them, fewer activations, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FAMILIES, tiny_point, write_tiny_model

from qbench.errors import StepError
from qbench.planner.trace import trace
from qbench.step.training_step import build_step

ADAPTERS = {"lora_dropout": 0.0, "target_modules": "all-linear"}


def gradients(model: str, precision: str, **train: Any) -> dict[str, torch.Tensor]:
    """Return the loss and the adapters' gradients of one pass on the CPU, adapters away from their start."""
    step = build_step(tiny_point(model, precision, lora=ADAPTERS, recipe="axolotl", **train), "cpu")
    torch.manual_seed(1)
    for name, parameter in step.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02)
    step.optimizer.zero_grad = lambda set_to_none=True: None  # type: ignore[method-assign,misc]
    loss = step.rehearse()
    found = {name: p.grad for name, p in step.model.named_parameters() if p.grad is not None}
    return {"loss": loss, **found}


@pytest.mark.parametrize(
    ("family", "chosen"), [("qwen2", "axolotl"), ("qwen2", "mlp"), ("gemma2", "attention")]
)
def test_values_are_those_of_separate_layers(tmp_path: Path, family: str, chosen: str):
    model = write_tiny_model(tmp_path, FAMILIES[family])
    plain = gradients(model, "fp32", lora_kernels="none")
    fused = gradients(model, "fp32", lora_kernels=chosen)
    assert plain.keys() == fused.keys()
    for name, value in plain.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-4, atol=1e-6)


def test_dropout_of_the_adapters_reaches_the_input(tmp_path: Path):
    model = write_tiny_model(tmp_path, FAMILIES["qwen2"])
    step = build_step(tiny_point(model, "fp32", lora={"lora_dropout": 0.5}, lora_kernels="axolotl"), "cpu")
    assert torch.isfinite(step.run())


def test_fewer_activations_are_kept_in_4_bit(tmp_path: Path):
    model = write_tiny_model(tmp_path, FAMILIES["qwen2"])
    settings = {"recipe": "axolotl", "autocast": "bf16", "loss_type": "cut_cross_entropy", "lora": ADAPTERS}
    plain, fused = (
        trace(tiny_point(model, "nf4-dq", lora_kernels=chosen, **settings), "cuda", None).memory.phases
        for chosen in ("none", "axolotl")
    )
    assert fused["backward"] < plain["backward"]


@pytest.mark.parametrize(
    ("precision", "lora", "reason"),
    [("int8", {}, "precision int8"), ("bf16", {"use_dora": True}, "use_dora")],
)
def test_what_is_not_planned_is_refused_where_asked_for(
    tmp_path: Path, precision: str, lora: dict[str, Any], reason: str
):
    model = write_tiny_model(tmp_path, FAMILIES["qwen2"])
    build_step(tiny_point(model, precision, lora=lora, recipe="axolotl"), "meta")
    with pytest.raises(StepError, match=f"lora_kernels axolotl is not planned with {reason}"):
        build_step(tiny_point(model, precision, lora=lora, lora_kernels="axolotl"), "meta")
