"""Hold the plans of several GPUs against real processes: the same step under gloo on the CPU, on every rank.

    python -m benchmarks.distributed_gloo [--quick] [--out reports/distributed/gloo.jsonl]

Each case is planned for the CPU, all layers and few, and run by real gloo processes under the same ledger.
Peak, end and number of events must be equal. Left aside on the real side: copies that gloo makes within a
reduce-scatter and an all-gather, which NCCL does not, and what the check of shapes by DDP takes first.
gloo's threads hold a buffer a moment longer now and then, so a case that differs is run up to three times.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from qbench.quick_imports import quick_imports

with quick_imports():
    import torch
    import torch.distributed as dist

from qbench.distributed.gloo import without_gloo
from qbench.distributed.group import join_group
from qbench.distributed.session import real_session
from qbench.memory.history.ledger import History
from qbench.memory.history.recording import record_steps
from qbench.memory.kernels.choices import Card
from qbench.memory.kernels.replacements import kernels_of
from qbench.planner.recorded import record_point
from qbench.scenario.expand import point_from
from qbench.scenario.schema import Point
from qbench.step.model import load_config
from qbench.step.training_step import build_step
from tests.tiny import FAMILIES, OTHER_FAMILIES, write_tiny_model

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "qwen3": {},
    "gemma": {},
    "mixtral": {},
}
"""Six layers each, so that few are run and repeated; llama with a head of its own."""
TRIES = 3
SIZES: dict[str, Any] = {"seq_len": 64, "per_device_train_batch_size": 2}
ZERO_CASES: dict[str, dict[str, Any]] = {
    "lora trainer": {"recipe": "trainer"},
    "lora accumulation": {"gradient_accumulation_steps": 3},
    "full trainer": {"recipe": "trainer", "lora": None},
    "full without checkpointing": {"lora": None, "gradient_checkpointing": False, "overlap_comm": False},
}
CASES: dict[str, dict[str, Any]] = {
    "ddp lora": {"strategy": "ddp"},
    "ddp lora bucket views": {"strategy": "ddp", "gradient_as_bucket_view": True},
    "ddp lora trainer": {"strategy": "ddp", "recipe": "trainer", "autocast": "bf16"},
    "ddp full fp32": {"strategy": "ddp", "lora": None, "precision": "fp32"},
    "ddp full small buckets": {"strategy": "ddp", "lora": None, "bucket_cap_mb": 1},
    "ddp qlora": {"strategy": "ddp", "precision": "nf4-dq"},
    "fsdp2 lora": {"strategy": "fsdp2"},
    "fsdp2 lora without checkpointing": {"strategy": "fsdp2", "gradient_checkpointing": False},
    "fsdp2 lora no reshard": {"strategy": "fsdp2", "reshard_after_forward": False},
    "fsdp2 lora accumulation": {"strategy": "fsdp2", "gradient_accumulation_steps": 3},
    "fsdp2 lora trainer": {"strategy": "fsdp2", "recipe": "trainer", "autocast": "bf16"},
    "fsdp2 lora trl": {"strategy": "fsdp2", "recipe": "trl", "autocast": "bf16"},
    "fsdp2 full fp32": {"strategy": "fsdp2", "lora": None, "precision": "fp32"},
    "fsdp2 full trainer": {"strategy": "fsdp2", "lora": None, "recipe": "trainer", "autocast": "bf16"},
    "fsdp2 qlora uint8": {"strategy": "fsdp2", "precision": "nf4-dq"},
    "fsdp2 qlora bfloat16": {
        "strategy": "fsdp2",
        "precision": "nf4",
        "bnb_4bit_quant_storage": "bfloat16",
    },
    "fsdp2 qlora bfloat16 trainer": {
        "strategy": "fsdp2",
        "precision": "nf4",
        "bnb_4bit_quant_storage": "bfloat16",
        "recipe": "trainer",
        "autocast": "bf16",
    },
    **{
        f"zero{stage} {name}": {"strategy": f"zero{stage}", "autocast": "bf16", **settings}
        for stage in (1, 2, 3)
        for name, settings in ZERO_CASES.items()
    },
}
QUICK = ("ddp lora trainer", "fsdp2 qlora bfloat16 trainer")

Figures = dict[str, int]


def figures(history: History, point: Point) -> Figures:
    """Return peak, end and number of events of a history, without what gloo alone has."""
    sizes = [size for _, size in without_gloo(history, point).events]
    live = list(itertools.accumulate(sizes))
    return {"peak": max(live), "end": live[-1], "events": len(sizes)}


def planned(point: Point, rank: int, *, all_layers: bool) -> Figures:
    """Return the figures of a plan for the CPU."""
    with kernels_of("cpu", Card()):
        found = record_point(point, "cpu", load_config(point), Card(), all_layers=all_layers, rank=rank)
    return figures(found.history, point)


def ran(point: Point) -> Figures:
    """Return the figures of this process, one of a group."""
    with real_session(point) as session:
        step = build_step(point, "cpu", share=session.share)
        with kernels_of("cpu"):
            recording = record_steps(step, {"cpu"}, "cpu", load=session.attach)
    return figures(recording.ledger, point)


def run_ranks(points: list[Point], gpus: int) -> list[list[Figures]]:
    """Return the figures of each point on each rank, all run by one group of processes."""
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder, "points.json")
        asked.write_text(json.dumps([point.model_dump(mode="json") for point in points]), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.distributed_gloo", "--worker", folder]
        started = [
            subprocess.Popen(
                command,
                env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(gpus)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(gpus)
        ]
        said = [process.communicate(timeout=1800)[1] for process in started]
        if any(process.returncode for process in started):
            raise RuntimeError("\n".join(text[-2000:] for text in said))
        by_rank = [json.loads(Path(folder, f"{rank}.json").read_text("utf-8")) for rank in range(gpus)]
    return [list(each) for each in zip(*by_rank, strict=True)]


def worker(folder: str) -> None:
    """Run the points of a folder as one rank, and write their figures there."""
    torch.set_num_threads(1)
    join_group("gloo", Path(folder, "store"), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    points = [
        Point.model_validate(each) for each in json.loads(Path(folder, "points.json").read_text("utf-8"))
    ]
    found = [ran(point) for point in points]
    Path(folder, f"{dist.get_rank()}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def point_of(case: str, model: str, gpus: int, folder: Path) -> Point:
    """Return the point of a case with a tiny model, whose config is written to a folder."""
    hub_id = FAMILIES.get(model) or OTHER_FAMILIES[model][0]
    name = write_tiny_model(folder / model, hub_id, num_hidden_layers=6, **MODELS[model])
    adapter = {} if CASES[case].get("lora", SIZES) is None else {"lora_dropout": 0.0, "r": 4}
    return point_from({"model": name}, {**SIZES, **adapter, **CASES[case], "gpus": gpus})


def compared(points: dict[str, Point], gpus: int) -> list[dict[str, Any]]:
    """Return a row for each point and for its first and last rank: planned and real figures."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for name, rank in itertools.product(points, sorted({0, gpus - 1})):
        row: dict[str, Any] = {"case": name, "gpus": gpus, "rank": rank, "equal": False}
        row["plan"] = planned(points[name], rank, all_layers=True)
        repeats = name.startswith("fsdp2")  # Other strategies are planned with all layers anyway.
        row["few_layers"] = planned(points[name], rank, all_layers=False) if repeats else row["plan"]
        rows[name, rank] = row
    for tries in range(1, TRIES + 1):
        left = list(dict.fromkeys(name for (name, _), row in rows.items() if not row["equal"]))
        if not left:
            break
        found = run_ranks([points[name] for name in left], gpus)
        for name, real in zip(left, found, strict=True):
            for rank in sorted({0, gpus - 1}):
                row = rows[name, rank]
                if not row["equal"]:
                    is_equal = row["plan"] == row["few_layers"] == real[rank]
                    row.update(real=real[rank], tries=tries, equal=is_equal)
    return list(rows.values())


def main() -> int:
    """Plan and run every case; print each, write a record of all, and return 1 where one differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", default="")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--gpus", default="2,3")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--cases", default="")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.worker:
        worker(asked.worker)
        return 0
    names = QUICK if asked.quick else [name for name in CASES if asked.cases in name]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for gpus, model in itertools.product(map(int, asked.gpus.split(",")), asked.models.split(",")):
            points = {name: point_of(name, model, gpus, Path(folder)) for name in names}
            for row in compared(points, gpus):
                row["model"] = model
                rows.append(row)
                print("equal " if row["equal"] else "DIFFER", json.dumps(row), flush=True)
            if asked.out:
                asked.out.parent.mkdir(parents=True, exist_ok=True)
                asked.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    equal = sum(row["equal"] for row in rows)
    print(f"{equal} of {len(rows)} equal")
    return 0 if equal == len(rows) else 1


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
