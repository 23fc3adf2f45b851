"""One step trains what it should, keeps alive what its recipe keeps, and evaluation changes nothing."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FAMILIES, tiny_point, write_tiny_model

from qbench.step.training_step import TrainingStep, build_step


def build(folder: Path, precision: str = "fp32", family: str = "llama", **train: Any) -> TrainingStep:
    """Return a step on the CPU without dropout in the adapters."""
    model = write_tiny_model(folder / family, FAMILIES[family])
    return build_step(tiny_point(model, precision, {"lora_dropout": 0.0}, **train), "cpu")


def adapters(step: TrainingStep) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in step.model.named_parameters() if p.requires_grad}


def base_bytes(step: TrainingStep) -> dict[str, tuple[torch.Tensor, int]]:
    """Return a copy of every frozen tensor and the address of the original."""
    return {
        name: (parameter.detach().clone(), parameter.data_ptr())
        for name, parameter in step.model.named_parameters()
        if not parameter.requires_grad
    }


def assert_base_unchanged(step: TrainingStep, before: dict[str, tuple[torch.Tensor, int]]) -> None:
    for name, (values, address) in before.items():
        parameter = step.model.get_parameter(name)
        assert parameter.data_ptr() == address
        assert torch.equal(parameter, values)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "nf4", "nf4-dq", "int8"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["saved", "checkpointed"])
def test_loss_falls_on_a_batch_seen_again(tmp_path: Path, precision: str, checkpointing: bool) -> None:
    step = build(tmp_path, precision, gradient_checkpointing=checkpointing)
    for group in step.optimizer.param_groups:
        group["lr"] = 5e-3
    before = base_bytes(step)
    losses = [step.run().item() for _ in range(12)]
    # Random tokens of a vocabulary of 512: the loss starts at ln(512).
    assert losses[0] == pytest.approx(6.24, abs=0.1)
    assert losses[-1] < losses[0] - 0.1
    assert_base_unchanged(step, before)


def test_only_the_adapters_move(tmp_path: Path) -> None:
    step = build(tmp_path)
    before, frozen = adapters(step), base_bytes(step)
    step.run()
    after = adapters(step)
    # B starts at zero, so that A gets no gradient in the first step.
    assert not any(torch.equal(before[name], after[name]) for name in before if "lora_B" in name)
    assert_base_unchanged(step, frozen)
    assert all(parameter.grad is None for parameter in step.model.parameters())


def test_full_fine_tuning_moves_everything(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path, FAMILIES["llama"])
    step = build_step(tiny_point(model, "fp32").model_copy(update={"lora": None}), "cpu")
    before = adapters(step)
    assert len(before) == len(list(step.model.parameters()))
    step.run()
    assert not any(torch.equal(before[name], value) for name, value in adapters(step).items())


@pytest.mark.parametrize(("recipe", "kept"), [("plain", True), ("peft", True), ("trainer", False)])
@pytest.mark.parametrize("precision", ["bf16", "nf4-dq"])
def test_who_keeps_the_logits_until_the_optimizer_runs(
    tmp_path: Path, precision: str, recipe: str, kept: bool
) -> None:
    step = build(tmp_path, precision, recipe=recipe)
    logits: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []
    step.model.register_forward_hook(lambda module, args, output: logits.append(weakref.ref(output.logits)))

    def note(phase: str) -> None:
        if phase == "optimizer":
            alive.append(logits[-1]() is not None)

    step.on_phase = note
    step.run()
    assert alive == [kept]


def test_phases_in_order(tmp_path: Path) -> None:
    phases: list[str] = []
    step = build(tmp_path, gradient_accumulation_steps=2)
    step.on_phase = phases.append
    step.run()
    assert phases == ["forward", "loss", "backward"] * 2 + ["optimizer"]


def test_accumulation_is_the_mean_over_its_micro_batches(tmp_path: Path) -> None:
    once, thrice = (build(tmp_path, gradient_accumulation_steps=count) for count in (1, 3))
    # Random data is one batch, so three passes over it give the gradient of one.
    loss = once.run()
    assert thrice.run().item() == pytest.approx(loss.item(), rel=1e-5)
    moved = adapters(thrice)
    for name, value in adapters(once).items():
        assert torch.allclose(moved[name], value, atol=1e-6)


def test_batches_are_taken_in_turn(tmp_path: Path) -> None:
    step = build(tmp_path, gradient_accumulation_steps=2)
    first = step.batches[0]
    second = {name: ids.flip(0).roll(1, 1) for name, ids in first.items()}
    step.batches = [first, second]
    seen: list[torch.Tensor] = []
    step.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    step.run()
    step.run()
    assert [tensor is first["input_ids"] for tensor in seen] == [True, False, True, False]


@pytest.mark.parametrize(
    ("family", "precision"),
    [
        ("llama", "fp32"),
        ("llama", "nf4"),
        ("llama", "nf4-dq"),
        ("llama", "int8"),
        ("gpt2", "nf4"),
        ("bloom", "bf16"),
    ],
)
def test_evaluation_changes_nothing(tmp_path: Path, family: str, precision: str) -> None:
    model = write_tiny_model(tmp_path / family, FAMILIES[family])
    # Dropout in the adapters, and in GPT-2's attention and residuals by its own config.
    step = build_step(tiny_point(model, precision, {"lora_dropout": 0.5}), "cpu")
    step.run()
    before, frozen = adapters(step), base_bytes(step)
    modes = [module.training for module in step.model.modules()]
    first = step.evaluate()
    assert step.evaluate() == first
    assert first == pytest.approx(6.24, abs=0.3)
    assert [module.training for module in step.model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in adapters(step).items())
    assert all(parameter.grad is None for parameter in step.model.parameters())
    assert_base_unchanged(step, frozen)
    # And the step still trains.
    step.run()
    assert any(not torch.equal(before[name], value) for name, value in adapters(step).items())


def test_same_point_gives_the_same_step(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path, FAMILIES["llama"])
    first, second = (build_step(tiny_point(model, "nf4"), "cpu") for _ in range(2))
    assert torch.equal(first.batches[0]["input_ids"], second.batches[0]["input_ids"])
    for name, value in adapters(first).items():
        assert torch.equal(value, second.model.get_parameter(name))


@pytest.mark.parametrize("precision", ["bf16", "nf4-dq", "int8"])
def test_static_tensors_are_all_there_is(tmp_path: Path, precision: str) -> None:
    step = build(tmp_path, precision)
    by_category: dict[str, int] = {}
    for _, category, tensor in step.static_tensors():
        by_category[category] = by_category.get(category, 0) + tensor.numel() * tensor.element_size()
    assert by_category["adapters"] == 4 * step.facts.trainable_params
    # Ids and labels, two sequences of 32 tokens in int64.
    assert by_category["activations"] == 2 * 2 * 32 * 8
    linear, left_out = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160), 512 * 64 + 5 * 64
    # Two rotary buffers of 8 frequencies in fp32.
    packed = {"bf16": 2 * linear, "nf4-dq": linear // 2, "int8": linear}[precision]
    upcast = 2 if precision == "bf16" else 4
    assert by_category["weights"] == packed + upcast * left_out + 2 * 8 * 4
    # Rows of each layer's scale: q and o 64, k and v 32, gate and up 160, down 64.
    scales = 4 * 2 * (64 + 32 + 32 + 64 + 160 + 160 + 64)
    # A scale in 8 bit for 64 weights, one fp32 for up to 256 of them, two code books, an offset.
    nested = linear // 64 + 14 * 4 * (1 + 16 + 256 + 1)
    assert by_category.get("quant_state", 0) == {"bf16": 0, "nf4-dq": nested, "int8": scales}[precision]


def test_optimizer_has_state_after_the_first_step(tmp_path: Path) -> None:
    step = build(tmp_path)
    assert list(step.optimizer_tensors()) == []
    step.run()
    # Two moments for each element, and a step counter for each of 14 pairs of A and B.
    assert sum(tensor.numel() for tensor in step.optimizer_tensors()) == 2 * step.facts.trainable_params + 28
    assert step.managed_bytes == 0


def test_autocast_runs_the_products_in_16_bit(tmp_path: Path) -> None:
    step = build(tmp_path, "fp32", autocast="bf16")
    dtypes: list[torch.dtype] = []
    layer = step.model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    layer.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    step.run()
    assert dtypes == [torch.bfloat16]
    assert all(tensor.dtype == torch.float32 for tensor in adapters(step).values())
