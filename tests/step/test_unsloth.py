"""Recipe unsloth and layers whose inputs wait on the host: values as without, and what stays on the card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FAMILIES, tiny_point, write_tiny_model

from qbench.planner.trace import trace
from qbench.step.offload import Buffers
from qbench.step.training_step import build_step
from qbench.step.unsloth_kernels import chunks_of

ADAPTERS = {"lora_dropout": 0.0, "target_modules": "all-linear"}


def gradients(model: str, **train: Any) -> dict[str, torch.Tensor]:
    """Return the loss and the adapters' gradients of one pass on the CPU, adapters away from their start."""
    step = build_step(tiny_point(model, "fp32", lora=ADAPTERS, **train), "cpu")
    torch.manual_seed(1)
    for name, parameter in step.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02)
    step.optimizer.zero_grad = lambda set_to_none=True: None  # type: ignore[method-assign,misc]
    loss = step.rehearse()
    found = {name: p.grad for name, p in step.model.named_parameters() if p.grad is not None}
    return {"loss": loss, **found}


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text"])
def test_values_are_those_of_trainer(tmp_path: Path, family: str):
    model = write_tiny_model(tmp_path, FAMILIES[family])
    plain = gradients(model, recipe="trainer")
    fused = gradients(model, recipe="unsloth", gradient_checkpointing=True)
    assert plain.keys() == fused.keys()
    for name, value in plain.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-4, atol=1e-6)


def test_checkpoints_on_the_host_have_the_values_of_checkpoints_on_the_card(tmp_path: Path):
    model = write_tiny_model(tmp_path, FAMILIES["qwen2"])
    train = {"recipe": "axolotl", "lora_kernels": "none", "gradient_checkpointing": True}
    kept, offloaded = (
        gradients(model, activation_offloading=where, **train) for where in ("none", "checkpoints")
    )
    for name, value in kept.items():
        torch.testing.assert_close(offloaded[name], value)


def test_the_card_keeps_no_input_of_a_layer_but_two_buffers(tmp_path: Path):
    # 8 layers of 2 x 8,192 x 128 values in 16 bit: 4 MiB a layer, of which 2 MiB and more go to the host.
    sizes = {"hidden_size": 128, "num_hidden_layers": 8, "max_position_embeddings": 8192}
    model = write_tiny_model(tmp_path, FAMILIES["qwen2"], **sizes)

    def forward(where: str) -> int:
        train = {"recipe": "axolotl", "loss_type": "cut_cross_entropy", "gradient_checkpointing": True}
        point = tiny_point(model, "bf16", activation_offloading=where, seq_len=8192, **train)
        return trace(point, "cuda", None).memory.phases["loss"]

    on_card, on_host, by_unsloth = (forward(where) for where in ("none", "checkpoints", "unsloth"))
    layer = 2 * 8192 * 128 * 2
    # Beside inputs of layers, peaks differ by less than one.
    assert 8 * layer <= on_card - on_host < 9 * layer
    # Two buffers, and the last layer's input.
    assert 3 * layer <= by_unsloth - on_host < 4 * layer


def test_small_inputs_and_the_last_layer_stay() -> None:
    buffers, small, large = Buffers(), torch.empty(2**20, device="meta"), torch.empty(2**21, device="meta")
    assert [buffers.takes(each) for each in (large, small, large)] == [True, False, True]
    buffers.end()
    assert [buffers.takes(large) for _ in range(3)] == [True, True, False]
    assert len(buffers.room) == 2


def test_the_loss_has_one_chunk_within_4_gib_else_a_multiple_of_four() -> None:
    # 8,192 tokens of 131,072 words take 4 GiB in fp32, one token more takes more.
    assert [chunks_of(tokens, 131_072) for tokens in (8192, 8193, 32_768, 32_769)] == [1, 4, 4, 8]
