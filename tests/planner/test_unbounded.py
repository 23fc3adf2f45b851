"""Sizes beyond all reason: a plan, or a line that says what is allowed, in bounded time and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import FAMILIES, tiny_point, write_tiny_model

from qbench.catalog.gpus import find_gpu
from qbench.errors import StepError
from qbench.memory.history import ledger
from qbench.planner.plan import plan
from qbench.step import data, limits
from qbench.units import MIB


def planned(folder: Path, precision: str = "bf16", changes: dict[str, Any] | None = None, **train: Any):
    name = write_tiny_model(folder, FAMILIES["llama"], **(changes or {}))
    return plan(tiny_point(name, precision, **train), "cuda", [find_gpu("A100-SXM4-80GB")])


@pytest.mark.parametrize(
    ("precision", "train"),
    [
        ("bf16", {"recipe": "peft"}),
        ("nf4", {"recipe": "plain", "gradient_checkpointing": True}),
        ("bf16", {"recipe": "trainer", "autocast": "bf16"}),
        ("nf4", {"recipe": "trl", "optim": "paged_adamw_8bit"}),
    ],
    ids=lambda each: each["recipe"] if isinstance(each, dict) else each,
)
def test_micro_batches_that_are_not_run_count_as_if_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, train: dict[str, Any]
):
    """7 micro-batches, of which 4 are run, and all 7: the same bytes, and times but for one operator."""
    few = planned(tmp_path, precision, gradient_accumulation_steps=7, **train).metrics
    monkeypatch.setattr(data, "MOST_PASSES", 7)
    full = planned(tmp_path, precision, gradient_accumulation_steps=7, **train).metrics
    speeds = ("step_time_s", "tokens_per_s", "cost_usd_per_mtok")
    assert {name: few[name] for name in few if name not in speeds} == {
        name: full[name] for name in full if name not in speeds
    }
    assert few["step_time_s"] == pytest.approx(full["step_time_s"], rel=1e-3)


@pytest.mark.parametrize("recipe", ["trainer", "peft"])
def test_what_is_not_run_is_allocated_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
):
    """Batches of 128 KiB and losses are small blocks, which share segments of 2 MiB: 20 x 2 take 5 MiB."""
    changes = {"hidden_size": 32, "vocab_size": 64, "num_hidden_layers": 1}
    train = {
        "recipe": recipe,
        "seq_len": 16384,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 20,
    }
    few = planned(tmp_path, changes=changes, **train).metrics
    monkeypatch.setattr(data, "MOST_PASSES", 20)
    full = planned(tmp_path, changes=changes, **train).metrics
    for name in ("static_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "breakdown_bytes"):
        assert few[name] == full[name], name


def test_a_million_micro_batches_cost_as_much_work_as_four(tmp_path: Path):
    four = planned(tmp_path, gradient_accumulation_steps=4, recipe="trainer")
    many = planned(tmp_path, gradient_accumulation_steps=2**20, recipe="trainer")
    # Trainer fetches all batches of an update: input_ids and labels of 2 x 32 tokens, 8 bytes each. The
    # allocator leaves the rest of a segment of 2 MiB with a block that nearly fills it.
    grown = many.metrics["static_bytes"] - four.metrics["static_bytes"]
    assert grown == pytest.approx((2**20 - 4) * 2 * 2 * 32 * 8, abs=2 * 2 * MIB)
    assert any("1,048,576 micro-batches" in caveat for caveat in many.caveats)
    assert not any("micro-batches" in caveat for caveat in four.caveats)
    assert many.metrics["step_time_s"] == pytest.approx(2**18 * four.metrics["step_time_s"], rel=0.05)


def test_a_step_beyond_any_card_is_planned(tmp_path: Path):
    # Scores of 2^23 x 2^23 in fp32, 2^48 bytes for each head, beyond what 50 bits can address.
    record = planned(tmp_path, seq_len=2**23, per_device_train_batch_size=1, attn_implementation="eager")
    assert record.metrics["peak_reserved_bytes"] > 2**50
    assert not record.detail["fits"][0]["fits"]


def test_bytes_that_cannot_be_counted_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("qbench.planner.trace.MOST_MEMORY_BYTES", 2**20)
    with pytest.raises(StepError, match="takes more than 4 EiB"):
        planned(tmp_path)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_layers_without_weights_are_planned(tmp_path: Path):
    assert planned(tmp_path, changes={"intermediate_size": 0}).outcome == "ok"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 1_000_000}, "num_hidden_layers 1000000; allowed: at most 512"),
        ({"num_hidden_layers": 2**50}, "num_hidden_layers 1125899906842624; allowed: at most 512"),
        ({"vision_config": {"depth": 10_000}}, "depth 10000; allowed: at most 512"),
        ({"attention_types": [[["global"], 2**39]]}, "attention_types 549755813888; allowed: at most"),
        ({"vocab_size": 2**50}, "vocab_size 1125899906842624; allowed: at most"),
        ({"text_config": [1]}, r"has \[1\] as its part for text"),
        ({"text_config": "llama"}, "has 'llama' as its part for text"),
        ({"text_config": {"model_type": "llama"}}, "as its part for text"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_a_config_that_no_model_has_is_a_line(tmp_path: Path, changes: dict[str, Any], words: str):
    with pytest.raises(StepError, match=words):
        planned(tmp_path, changes=changes)


def test_more_modules_than_any_model_has_are_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "MOST_MODULES", 20)
    with pytest.raises(StepError, match="describes more than 20 modules"):
        planned(tmp_path)


def test_a_loop_over_tokens_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ledger, "MOST_ALLOCATIONS", 1_000)
    rwkv = {"model_type": "rwkv", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100}
    with pytest.raises(StepError, match="more than a plan follows; use a shorter seq_len or fewer layers"):
        planned(tmp_path, changes=rwkv, seq_len=512)
