"""A stretched history is the one that the deep model itself would have, handle for handle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import FAMILIES, tiny_point, write_tiny_model

import qbench.planner.recorded as recorded
from qbench.catalog.models import find_model
from qbench.memory.history.recording import without_gc
from qbench.memory.history.repeat import IrregularError
from qbench.memory.kernels.choices import Card
from qbench.memory.kernels.replacements import kernels_of
from qbench.planner.few_layers import Shallow, shallow
from qbench.planner.recorded import Recorded, record_few_layers, record_point
from qbench.scenario.schema import Device, Point
from qbench.step.model import load_config

DEPTHS = {"gemma3_text": 30, "olmo3": 20, "smollm3": 20}
"""Where only every fourth or sixth layer is of the same kind, fewer would leave none to repeat."""

EXPERTS = ("mistralai/Mixtral-8x7B-Instruct-v0.1", "Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-V2-Lite")


def both_ways(point: Point, device: Device) -> tuple[Recorded, Recorded]:
    """Return what is recorded of few layers, which must be enough, and of all."""
    config = load_config(point)
    with kernels_of(device, Card()), without_gc():
        few = shallow(config)
        assert few is not None
        repeated = record_few_layers(point, device, few, Card())
        return repeated, record_point(point, device, config, Card(), all_layers=True)


def in_runs(events: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return events with frees that follow each other in the order of their handles.

    Python puts off the end of objects that are nested deeper than 50 times, so that the order in which the
    pieces of an old graph are freed, nothing being allocated between them, depends on the depth.
    """
    ordered: list[tuple[int, int]] = []
    frees: list[tuple[int, int]] = []
    for event in events:
        if event[1] < 0:
            frees.append(event)
            continue
        ordered += [*sorted(frees), event]
        frees = []
    return ordered + sorted(frees)


def assert_same(repeated: Recorded, full: Recorded) -> None:
    assert repeated.history.allocations == full.history.allocations
    assert in_runs(repeated.history.events) == in_runs(full.history.events)
    assert repeated.history.marks == full.history.marks
    assert repeated.facts == full.facts
    assert repeated.managed_bytes == full.managed_bytes


def deep_model(folder: Path, hub_id: str, depth: int) -> str:
    changes: dict[str, Any] = {
        key: depth for key in ("num_hidden_layers", "n_layer") if key in find_model(hub_id).config
    }
    return write_tiny_model(folder, hub_id, **changes | {"layer_types": None, "no_rope_layers": None})


# Falcon's layers, which transformers does not quantize, are like those of the others.
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"falcon"}))
def test_every_dense_family(family: str, tmp_path: Path) -> None:
    model = deep_model(tmp_path / "model", FAMILIES[family], DEPTHS.get(family, 10))
    point = tiny_point(model, "nf4-dq", gradient_checkpointing=True)
    assert_same(*both_ways(point, "cuda"))


@pytest.mark.parametrize("hub_id", EXPERTS)
def test_experts(hub_id: str, tmp_path: Path) -> None:
    model = deep_model(tmp_path / "model", hub_id, 7)
    point = tiny_point(model, "nf4", {"lora_dropout": 0.0})
    assert_same(*both_ways(point, "cuda"))


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_checkpointing": False},
        {"recipe": "plain", "optim": "sgd"},
        {"recipe": "trainer", "optim": "adamw_8bit", "autocast": "bf16"},
        {"recipe": "trainer", "gradient_accumulation_steps": 2},
        {"recipe": "trl", "optim": "paged_adamw_8bit"},
        {"recipe": "axolotl", "autocast": "bf16"},
        {"recipe": "llama-factory", "loss_type": "liger"},
        {"recipe": "axolotl", "loss_type": "cut_cross_entropy"},
        {"attn_implementation": "eager", "per_device_train_batch_size": 1},
    ],
    ids=str,
)
def test_recipes_and_settings(device: Device, changes: dict[str, Any], tmp_path: Path) -> None:
    model = deep_model(tmp_path / "model", FAMILIES["qwen2"], 7)
    point = tiny_point(model, "nf4-dq", **{"gradient_checkpointing": True} | changes)
    assert_same(*both_ways(point, device))


def test_states_of_which_the_scales_alone_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paged states are out of sight; adapters of 4096 elements and more have some of 8 bit with scales."""
    monkeypatch.setattr("qbench.step.optimizer.PAGED_MIN_ELEMENTS", 1)
    model = deep_model(tmp_path / "model", FAMILIES["qwen2"], 7)
    assert_same(*both_ways(tiny_point(model, "nf4", {"r": 64}, optim="paged_adamw_8bit"), "cuda"))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_precisions(precision: str, tmp_path: Path) -> None:
    model = deep_model(tmp_path / "model", FAMILIES["llama"], 7)
    point = tiny_point(model, precision, {"use_dora": precision == "bf16"})
    assert_same(*both_ways(point, "cuda"))


def test_without_adapters(tmp_path: Path) -> None:
    model = deep_model(tmp_path / "model", FAMILIES["llama"], 7)
    point = tiny_point(model, "bf16").model_copy(update={"lora": None})
    assert_same(*both_ways(point, "cuda"))


def test_unlike_layers_are_not_repeated(tmp_path: Path) -> None:
    """Layers of two kinds in turn, said to be all alike: the first compared pair gives it away."""
    model = deep_model(tmp_path / "model", FAMILIES["gemma2"], 12)
    point = tiny_point(model, "bf16", seq_len=64)
    config = load_config(point)
    wrong = Shallow(config=config, depth=12, first=1, period=1, copies=3)
    with kernels_of("cuda", Card()), without_gc(), pytest.raises(IrregularError, match="layer"):
        record_few_layers(point, "cuda", wrong, Card())


def test_a_model_that_cannot_be_shortened_is_recorded_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = deep_model(tmp_path / "model", FAMILIES["llama"], 7)
    point = tiny_point(model)

    def irregular(*arguments: object) -> Recorded:
        raise IrregularError

    monkeypatch.setattr(recorded, "record_few_layers", irregular)
    with kernels_of("cuda", Card()), without_gc():
        found = record_point(point, "cuda", load_config(point), Card())
    assert found.facts.adapted_modules == 7 * 7  # q, k, v, o, gate, up, down in each of seven layers


def test_layers_named_by_number_are_not_left_out(tmp_path: Path) -> None:
    """Of few layers nobody sees that layer 5 of 12 has no experts."""
    model = deep_model(tmp_path / "model", "Qwen/Qwen3-30B-A3B", 12)
    config = load_config(tiny_point(model))
    assert shallow(config) is not None
    config.mlp_only_layers = [5]
    assert shallow(config) is None
    config.mlp_only_layers = []
    config.model_type = "ernie4_5_moe"
    assert shallow(config) is None
