"""Plans of several GPUs on tiny models: held against real processes, few layers against all, and by hand."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.distributed.fsdp._fully_shard import _fsdp_init, _fsdp_param, _fsdp_param_group, _fully_shard
from torch.distributed.tensor._sharding_prop import ShardingPropagator

from benchmarks.distributed_gloo import CASES, QUICK, compared, point_of
from qbench.distributed.zero import refuse_unplanned
from qbench.errors import StepError
from qbench.planner.plan import plan
from qbench.planner.trace import trace
from qbench.records.metrics import scalar
from qbench.scenario.distributed import PLANNED
from qbench.scenario.expand import point_from


def test_the_private_names_of_torch_that_are_replaced_exist() -> None:
    assert callable(_fsdp_init._get_device_from_mesh)
    assert callable(_fully_shard._get_device_from_mesh)  # type: ignore[attr-defined]
    assert callable(_fsdp_param_group.FSDPParamGroup._validate_no_meta_params)
    assert callable(torch.accelerator.current_stream)
    assert callable(_fsdp_param.alloc_storage)
    assert callable(_fsdp_param.free_storage)
    assert hasattr(ShardingPropagator, "_fake_mode_lock")


def test_plans_equal_real_processes(tmp_path: Path) -> None:
    points = {case: point_of(case, "llama", 2, tmp_path) for case in QUICK}
    assert [row for row in compared(points, 2) if not row["equal"]] == []


@pytest.mark.parametrize("model", ["llama", "mixtral"])
def test_few_layers_tell_the_memory_of_all_on_the_last_of_three_gpus(tmp_path: Path, model: str) -> None:
    point = point_of("fsdp2 lora trainer", model, 3, tmp_path)
    few, every = (trace(point, "cuda", all_layers=all_layers, rank=2) for all_layers in (False, True))
    for name in ("static_breakdown", "breakdown", "phases", "peak_at"):
        assert getattr(few.memory, name) == getattr(every.memory, name)
    assert len(few.ledger.events) == len(every.ledger.events)
    assert few.collectives == every.collectives
    assert few.reserved_bytes == every.reserved_bytes


def test_a_gpu_holds_its_share_and_the_largest_rank_counts(tmp_path: Path) -> None:
    record = plan(point_of("fsdp2 lora", "llama", 3, tmp_path))
    first, last = record.ranks
    assert (first["rank"], last["rank"]) == (0, 2)
    # A matrix of 4 rows is cut into 2, 2 and 0 rows: the last GPU has no optimizer state of it.
    assert last["peak_allocated_bytes"] < first["peak_allocated_bytes"]
    assert record.peak_allocated_bytes == first["peak_allocated_bytes"]
    assert any("hold nothing but padding" in text for text in record.caveats)
    assert record.metrics.get("step_time_s") is None


def test_replicas_have_buckets_of_as_many_bytes_as_gradients(tmp_path: Path) -> None:
    record = plan(point_of("ddp full fp32", "llama", 2, tmp_path))
    breakdown, trainable = record.breakdown_bytes, scalar(record, "trainable_params")
    # Two buckets, the first of up to 1 MiB: 4 bytes for each parameter, rounded up to 512.
    assert trainable is not None
    assert 0 <= breakdown["buckets"] - 4 * trainable < 2 * 512
    assert breakdown["communication"] == breakdown["gathered"] == 0


def test_collectives_are_counted_by_group(tmp_path: Path) -> None:
    point = point_of("fsdp2 lora accumulation", "llama", 2, tmp_path)
    traced = trace(point, "cuda")
    by_kind = {
        (each["op"], each["group"].rpartition(".")[2] or "root", each["phase"]): each
        for each in traced.collectives
    }
    # 512 x 64 weights of 2 bytes, which two GPUs hold without padding; three micro-batches.
    embedding = by_kind["all_gather", "embed_tokens", "forward"]
    assert (embedding["bytes"], embedding["calls"]) == (512 * 64 * 2, 3)
    assert by_kind["all_gather", "*", "backward"]["calls"] == 6 * 3
    # Gradients of six layers' adapters go once an update.
    reduced = by_kind["reduce_scatter", "*", "backward"]
    assert reduced["calls"] == 6
    assert reduced["calls"] * reduced["bytes"] == 4 * traced.facts.trainable_params
    replicas = trace(point_of("ddp full fp32", "llama", 2, tmp_path), "cuda")
    sent = [each["bytes"] for each in replicas.collectives if each["op"] == "all_reduce"]
    assert sum(sent) == 4 * replicas.facts.trainable_params


def test_what_cannot_be_sharded_is_refused(tmp_path: Path) -> None:
    whole = point_of("fsdp2 lora", "llama", 2, tmp_path)
    for changes, problem in (
        ({"precision": "int8"}, "int8 weights"),
        ({"optim": "adamw_8bit"}, "optim adamw_8bit"),
        ({"transformer_cls_names_to_wrap": "NoSuchLayer"}, "NoSuchLayer"),
        ({"recipe": "trainer", "loss_type": "liger"}, "loss_type liger"),
    ):
        with pytest.raises(StepError, match=problem):
            plan(point_from(whole.model_dump(), changes))


def test_every_case_names_a_strategy() -> None:
    assert {case.partition(" ")[0] for case in CASES} == set(PLANNED)


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
def test_plans_of_zero_equal_real_processes(tmp_path: Path) -> None:
    points = {
        case: point_of(case, "llama", 2, tmp_path) for case in ("zero1 full trainer", "zero3 lora trainer")
    }
    assert [row for row in compared(points, 2) if not row["equal"]] == []


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="DeepSpeed is installed")
def test_zero_without_deepspeed_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"pip install 'qbench\[deepspeed\]'"):
        plan(point_of("zero2 lora trainer", "llama", 2, tmp_path))


def test_what_deepspeed_does_not_take_is_refused(tmp_path: Path) -> None:
    whole = point_of("zero3 lora trainer", "llama", 2, tmp_path)
    for changes, problem in (
        ({"precision": "nf4"}, "precision nf4"),
        ({"autocast": "none"}, "takes fp32 weights only"),
        ({"optim": "adamw_8bit"}, "optim adamw_8bit"),
    ):
        with pytest.raises(StepError, match=problem):
            refuse_unplanned(point_from(whole.model_dump(), changes))


def test_a_head_that_a_fused_loss_puts_together_counts_as_gathered(tmp_path: Path) -> None:
    ledger = trace(point_of("fsdp2 lora trl", "llama", 2, tmp_path), "cuda").ledger
    in_loss = [made for made in ledger.outline.made if made[0] == "loss" and made[3] == "gathered"]
    assert [made[1] for made in in_loss if "wrap_tensor" in made[1]] != []
