"""How far quantization moves real weights, and the losses beside it, on a checkpoint of a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from tiny import write_tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from qbench.errors import StepError
from qbench.measure import quality
from qbench.measure.quality import quality_detail, quality_metrics, weight_errors
from qbench.measure.task import Task
from qbench.scenario.schema import MeasureSettings, Point
from qbench.step.training_step import TrainingStep, build_step

LOSSES = (6.0, 5.5)


@pytest.fixture(scope="module", params=["HuggingFaceTB/SmolLM2-135M", "openai-community/gpt2"])
def checkpoint(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> str:
    """Return a folder with real weights; GPT-2 keeps those of its linear layers the other way round."""
    # bitsandbytes packs blocks of 64 weights; rows of 160, which end within one, it unpacks wrongly on a CPU.
    rows = {} if "gpt2" in request.param else {"intermediate_size": 128}
    folder = Path(write_tiny_model(tmp_path_factory.mktemp("model"), request.param, **rows))
    torch.manual_seed(1)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    model.save_pretrained(folder)
    return str(folder)


def task(model: str, precision: str, repeat: int = 0, weights: str = "pretrained") -> Task:
    train = {"seq_len": 16, "gradient_checkpointing": False}
    lora = {"target_modules": "all-linear"}
    point = Point.model_validate(
        {"model": model, "weights": weights, "precision": precision, "train": train, "lora": lora}
    )
    return Task(point=point, device="cpu", settings=MeasureSettings(), repeat=repeat)


def detail(asked: Task) -> tuple[TrainingStep, dict[str, Any] | None]:
    step = build_step(asked.point, "cpu")
    return step, quality_detail(step, asked, LOSSES, 7)


def test_the_error_of_a_layer_is_that_of_packing_its_weight(checkpoint: str):
    step, found = detail(task(checkpoint, "nf4"))
    assert found is not None
    assert found["steps"] == 7
    assert (found["loss_before"], found["loss_after"]) == LOSSES
    base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    # The first linear layer by hand: pack it, unpack it, compare.
    name = next(iter(found["by_module"]))
    weight = base.get_submodule(name).weight.data
    if "h.0" in name:
        weight = weight.T.contiguous()
    packed, state = bnb.functional.quantize_4bit(weight, quant_type="nf4")
    back = bnb.functional.dequantize_4bit(packed, state).float()
    expected = torch.linalg.norm(back - weight.float()) / torch.linalg.norm(weight.float())
    assert found["by_module"][name] == pytest.approx(expected.item(), rel=1e-5)
    # NF4 of normal weights in blocks of 64 is off by about 9 %.
    assert 0.08 < found["weight_error"] < 0.11
    assert min(found["by_module"].values()) <= found["weight_error"] <= max(found["by_module"].values())
    assert len(found["by_module"]) == step.facts.checkable()["quantized_modules"]


def test_double_quantization_costs_almost_nothing_and_8_bits_little(checkpoint: str):
    errors = {}
    for precision in ("nf4", "nf4-dq", "fp4", "int8"):
        _, found = detail(task(checkpoint, precision))
        assert found is not None
        errors[precision] = found["weight_error"]
    assert errors["int8"] < 0.02 < errors["nf4"]
    assert errors["nf4-dq"] == pytest.approx(errors["nf4"], rel=0.02)
    assert errors["fp4"] > errors["nf4"]


def test_training_leaves_the_quantized_weights_as_they_were(checkpoint: str):
    asked = task(checkpoint, "nf4-dq")
    step = build_step(asked.point, "cpu")
    before = weight_errors(step.model, asked.point, lambda phase: None)
    step.run()
    assert weight_errors(step.model, asked.point, lambda phase: None) == before


def test_weights_are_compared_once_and_only_where_there_are_real_ones(checkpoint: str):
    _, found = detail(task(checkpoint, "bf16"))
    assert found == {
        "loss_before": 6.0,
        "loss_after": 5.5,
        "steps": 7,
        "seed": 0,
        "data": "random",
        "tokens": 16,
    }
    assert "by_module" not in (detail(task(checkpoint, "nf4", repeat=1))[1] or {})
    assert detail(task(checkpoint, "nf4", weights="random"))[1] is None


def test_weights_that_are_gone_by_then_lose_no_measurement(checkpoint: str, monkeypatch: pytest.MonkeyPatch):
    def gone(point: Point) -> Any:
        raise StepError("the folder is gone")

    step, _ = detail(task(checkpoint, "bf16"))
    monkeypatch.setattr(quality, "load_config", gone)
    found = quality_detail(step, task(checkpoint, "nf4"), LOSSES, 7)
    assert found is not None
    assert found["weights_error"] == "the folder is gone"


def test_metrics_are_those_that_are_known():
    assert quality_metrics(None) == {}
    assert quality_metrics({"loss_after": None, "weight_error": 0.09}) == {"weight_error": 0.09}
    assert quality_metrics({"loss_after": 3.5}) == {"text_loss": 3.5}
