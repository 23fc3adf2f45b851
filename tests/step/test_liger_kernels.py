"""Liger's kernels of layers: same values as without them, fewer activations, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FAMILIES, tiny_point, write_tiny_model

from qbench.errors import StepError
from qbench.planner.trace import trace
from qbench.scenario.liger import ALL_KERNELS
from qbench.step.training_step import build_step


def gradients(model: str, is_full: bool = False, **train: Any) -> dict[str, torch.Tensor]:
    """Return the loss and all gradients of one pass on the CPU, adapters away from their start."""
    point = tiny_point(model, "fp32", lora={"lora_dropout": 0.0, "target_modules": "all-linear"}, **train)
    step = build_step(point.model_copy(update={"lora": None}) if is_full else point, "cpu")
    torch.manual_seed(1)
    for name, parameter in step.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02)
    step.optimizer.zero_grad = lambda set_to_none=True: None  # type: ignore[method-assign,misc]
    loss = step.rehearse()
    found = {name: p.grad for name, p in step.model.named_parameters() if p.grad is not None}
    return {"loss": loss, **found}


@pytest.mark.parametrize(
    ("family", "is_full"), [("qwen3", False), ("gemma2", True), ("phi3", False), ("olmo2", True)]
)
def test_values_are_those_of_the_layers(tmp_path: Path, family: str, is_full: bool):
    model = write_tiny_model(tmp_path, FAMILIES[family])
    plain = gradients(model, is_full)
    fused = gradients(model, is_full, liger_kernels=ALL_KERNELS)
    assert plain.keys() == fused.keys()
    for name, value in plain.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-4, atol=1e-6)


def test_the_kernels_keep_fewer_activations(tmp_path: Path):
    model = write_tiny_model(tmp_path, FAMILIES["qwen2"])

    def peak(*kernels: str) -> int:
        point = tiny_point(model, "bf16", gradient_checkpointing=False, seq_len=512, liger_kernels=kernels)
        return trace(point, "cuda", None).memory.phases["backward"]

    rope, norms, products = (peak(kernel) for kernel in ALL_KERNELS)
    assert max(norms, products) < peak()
    assert rope <= peak()
    assert peak(*ALL_KERNELS) < min(norms, products)


def test_what_is_not_planned_is_refused(tmp_path: Path):
    model = write_tiny_model(tmp_path, FAMILIES["gpt2"])
    with pytest.raises(StepError, match=r"not for gpt2; leave it out"):
        build_step(tiny_point(model, "bf16", liger_kernels=ALL_KERNELS), "meta")
