"""Records made by hand, with the shape of a real run; no library ran to make them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qbench.comparison.methods import NEAR_PAIR_LIMIT, MethodPair, NearPair, near_results, pair_results
from qbench.comparison.results import gather
from qbench.records.record import Record
from qbench.scenario.schema import Point

ENVIRONMENT = {
    "device": "cuda",
    "device_name": "NVIDIA A100-SXM4-80GB",
    "versions": {"torch": "2.13.0", "transformers": "5.24.0", "peft": "0.21.2", "bitsandbytes": "0.50.2"},
    "python": "3.12.8",
    "platform": "Linux-6.8-x86_64",
    "qbench": "0.1.0",
    "git_commit": "d4698f3",
    "git_dirty": False,
    "memory_total_bytes": 85_899_345_920,
}

SETTINGS = {"r": "lora", "lora_alpha": "lora", "target_modules": "lora", "use_dora": "lora"}
TRAIN = ("seq_len", "per_device_train_batch_size", "gradient_checkpointing", "optim", "recipe")


def make_point(model: str = "meta-llama/Llama-2-7b-hf", precision: str = "bf16", **settings: Any) -> Point:
    """Return a point; settings go by their short names."""
    lora = {name: value for name, value in settings.items() if name in SETTINGS}
    train = {name: value for name, value in settings.items() if name in TRAIN}
    assert len(lora) + len(train) == len(settings), settings
    return Point(model=model, precision=precision, lora=lora, train=train)


def finding(name: str, verdict: str, value: Any = None, why: str = "because") -> dict[str, Any]:
    """Return a finding as measurements store it; one that is not valid voids the speed."""
    voids = ["step_time_s", "tokens_per_s"] if verdict == "invalid" else []
    return {"name": name, "value": value, "verdict": verdict, "why": why, "voids": voids}


def make_record(**changes: Any) -> Record:
    """Return a plan of Llama-2-7B that needs 14 GiB in bf16; `changes` are fields or the point's settings."""
    fields = {"kind", "outcome", "metrics", "detail", "environment", "created_at", "run_id"}
    settings = {name: value for name, value in changes.items() if name not in fields | {"point"}}
    given = {name: value for name, value in changes.items() if name in fields}
    values: dict[str, Any] = {
        "run_id": "hand-made",
        "kind": "plan",
        "outcome": "ok",
        "metrics": {"peak_allocated_bytes": 14 << 30, "trainable_params": 39_976_960},
        "environment": ENVIRONMENT,
        "created_at": "2026-11-24T12:00:00+00:00",
    }
    return Record(point=changes.get("point") or make_point(**settings), **(values | given))


def pair_methods(records: Iterable[Record]) -> list[MethodPair]:
    return pair_results(gather(records))


def near_pairs(records: Iterable[Record], limit: int = NEAR_PAIR_LIMIT) -> list[NearPair]:
    return near_results(gather(records), limit)
