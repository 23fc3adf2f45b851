"""What operators cost, by hand; and that few layers, repeated, cost what all of them do."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_point, write_tiny_model

from qbench.memory.history.recording import without_gc
from qbench.memory.kernels.choices import Card
from qbench.memory.kernels.replacements import kernels_of
from qbench.memory.work.columns import columns_of
from qbench.memory.work.log import Work, WorkTable
from qbench.memory.work.op_costs import OpCost, dequantizations, op_cost, product_of_4bit
from qbench.planner.few_layers import shallow
from qbench.planner.recorded import record_few_layers, record_point
from qbench.scenario.schema import Device, Point
from qbench.step.model import load_config

aten: Any = torch.ops.aten


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def cost(operator: Any, *args: Any, **kwargs: Any) -> OpCost:
    return op_cost(operator, args, kwargs, operator(*args, **kwargs))


def test_a_matrix_product() -> None:
    found = cost(aten.mm.default, meta(8, 3, dtype=torch.bfloat16), meta(5, 3, dtype=torch.bfloat16).t())
    # 2 x 8 x 5 x 3 operations; 24 + 15 elements read and 40 written, two bytes each.
    assert found == OpCost("mm", "matmul", "bf16", 240, 78, 80, (1, 8, 5, 3), "nt")


def test_a_batched_product_counts_its_batch() -> None:
    found = cost(aten.bmm.default, meta(2, 8, 3), meta(2, 3, 5))
    assert (found.flops, found.shape) == (480, (2, 8, 5, 3))


@pytest.mark.parametrize(("causal", "share"), [(True, 0.5), (False, 1.0)])
def test_attention_skips_what_is_masked(causal: bool, share: float) -> None:
    states = [meta(1, 2, 16, 4, dtype=torch.bfloat16)] * 3
    found = cost(aten._scaled_dot_product_flash_attention.default, *states, 0.0, causal)
    # Scores and values: two products of 2 heads x 16 x 16 x 4, two operations each.
    assert found.flops == share * 2 * 2 * (2 * 16 * 16 * 4)
    assert (found.kind, found.shape) == ("attention", (2, 16, 16, 4))


@pytest.mark.parametrize(
    ("operator", "args", "expected"),
    [
        # (read, written) in bytes of 10 x 10 fp32 elements.
        (aten.add.Tensor, (meta(10, 10), meta(10, 10)), (800, 400)),
        (aten.add_.Tensor, (meta(10, 10), meta(10, 10)), (800, 400)),
        (aten.copy_.default, (meta(10, 10), meta(10, 10, dtype=torch.bfloat16)), (200, 400)),
        (aten.zero_.default, (meta(10, 10),), (0, 400)),
        # One row is read ten times, but is only 40 bytes.
        (aten.add.Tensor, (meta(10, 10), meta(1, 10).expand(10, 10)), (440, 400)),
        # Only the rows that are asked for are read.
        (aten.embedding.default, (meta(1000, 10), meta(10, dtype=torch.int64)), (400, 400)),
    ],
)
def test_bytes_read_and_written(operator: Any, args: Any, expected: tuple[int, int]) -> None:
    found = cost(operator, *args)
    assert (found.read_bytes, found.written_bytes) == expected


def test_views_and_allocations_cost_nothing() -> None:
    for found in (cost(aten.view.default, meta(4, 4), [16]), cost(aten.empty_like.default, meta(4, 4))):
        assert (found.kind, found.num_bytes) == ("none", 0)


def test_layout_of_copies() -> None:
    square = meta(4, 4)
    assert cost(aten.clone.default, square).layout == ""
    assert cost(aten.clone.default, meta(4, 2, 4)[:, 0]).layout == "strided"
    assert cost(aten.clone.default, square.t()).layout == "transposed"


def test_a_4bit_weight_is_dequantized_or_read_packed() -> None:
    tokens, packed = meta(4, 64, dtype=torch.bfloat16), meta(64 * 128 // 2, 1, dtype=torch.uint8)
    absmax, nested = meta(1), meta(128, dtype=torch.uint8)
    args = (tokens, packed, [128, 64], absmax, 64, "nf4", None, nested)
    scales, weight = dequantizations(args, {})
    # 128 blocks of 64 weights: a byte each and one scale of 4 bytes in, 4 bytes each out.
    assert (scales.read_bytes, scales.written_bytes) == (132, 512)
    assert (weight.read_bytes, weight.written_bytes) == (4096 + 512, 2 * 128 * 64)
    fused = product_of_4bit(args, {}, meta(4, 128, dtype=torch.bfloat16))
    assert fused.flops == 2 * 4 * 128 * 64
    assert fused.read_bytes == 2 * 4 * 64 + 4096 + 4 + 128


def test_scaled_bytes_are_whole() -> None:
    # 100 x 1.1 is 110, but 110.00000000000001 in floating point.
    found = OpCost("stack", "copy", "fp32", 0, 10, 100).scaled(2.5, 1.1)
    assert (found.read_bytes, found.written_bytes) == (25, 110)
    assert isinstance(found.written_bytes, int)


def work_both_ways(point: Point, device: Device) -> tuple[Counter[Work], Counter[Work]]:
    """Return the work of few layers, repeated, and of all."""
    config = load_config(point)
    few = shallow(config)
    assert few is not None
    with without_gc(), kernels_of(device):
        repeated = record_few_layers(point, device, few, Card(), with_costs=True).work
        whole = record_point(point, device, config, Card(), all_layers=True, with_costs=True).work
    assert repeated is not None
    assert whole is not None
    return counted(repeated), counted(whole)


def counted(table: WorkTable) -> Counter[Work]:
    """Return how often each work is done in all."""
    return Counter(dict(columns_of(table).table()))


@pytest.mark.parametrize(
    ("precision", "train", "device"),
    [
        ("nf4-dq", {"recipe": "trainer", "gradient_checkpointing": True}, "cuda"),
        ("bf16", {"optim": "adamw_8bit", "gradient_accumulation_steps": 2}, "cuda"),
        ("nf4", {}, "cpu"),
    ],
)
def test_few_layers_cost_what_all_do(
    tmp_path: Path, precision: str, train: dict[str, Any], device: Device
) -> None:
    model = write_tiny_model(tmp_path, "meta-llama/Llama-3.2-1B", num_hidden_layers=9)
    repeated, whole = work_both_ways(tiny_point(model, precision, **train), device)
    assert repeated == whole
    recomputed = sum(times for work, times in whole.items() if work.is_recomputed)
    assert bool(recomputed) == train.get("gradient_checkpointing", False)


def test_recomputation_is_a_forward_pass_of_every_layer(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path, "meta-llama/Llama-3.2-1B")
    point = tiny_point(model, gradient_checkpointing=True)
    with kernels_of("cuda"):
        work = record_point(point, "cuda", load_config(point), Card(), with_costs=True).work
    assert work is not None

    def flops(of: Any) -> float:
        return sum(times * entry.cost.flops for entry, times in work if of(entry))

    # Everything before the output head runs again, but for what follows the last tensor that was saved.
    forward = flops(lambda entry: entry.phase == "forward")
    again = flops(lambda entry: entry.is_recomputed)
    assert 0.8 * forward < again <= forward
