"""Hold plans of several GPUs against null GPUs: the CUDA build of torch, real streams, one process a rank.

    python -m benchmarks.distributed_null --python .venv-cuda/bin/python --out reports/distributed/null.jsonl

Allocated and reserved are those that torch.cuda counts over two steps on the first and the last rank. A model
that FSDP2 shards is built on the GPU whole, so its cache is emptied before the first step; replicas count
from the load on, as their plans do.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from qbench.catalog.gpus import find_gpu
from qbench.nullgpu.environment import card_environment
from qbench.nullgpu.launcher import preload_environment
from qbench.scenario.expand import point_from
from qbench.scenario.schema import Point

MODELS = {
    "smollm2 135M": ("HuggingFaceTB/SmolLM2-135M", 512),
    "llama 1B": ("meta-llama/Llama-3.2-1B", 1024),
}
"""Model and tokens of a sequence."""
CARDS = ("RTX 4090", "A100-SXM4-80GB", "H100-SXM5-80GB")
NF4: dict[str, Any] = {"precision": "nf4-dq"}
TRAINER: dict[str, Any] = {"recipe": "trainer", "autocast": "bf16"}
CASES: dict[str, dict[str, Any]] = {
    "ddp lora": {"strategy": "ddp"},
    "ddp qlora trainer": {"strategy": "ddp", **NF4, **TRAINER},
    "fsdp2 lora": {"strategy": "fsdp2"},
    "fsdp2 lora trainer": {"strategy": "fsdp2", **TRAINER},
    "fsdp2 lora accumulation": {"strategy": "fsdp2", "gradient_accumulation_steps": 3},
    "fsdp2 full trainer": {"strategy": "fsdp2", "lora": None, **TRAINER},
    "fsdp2 qlora uint8 trl": {"strategy": "fsdp2", **NF4, "recipe": "trl", "autocast": "bf16"},
    "fsdp2 qlora bfloat16": {"strategy": "fsdp2", **NF4, "bnb_4bit_quant_storage": "bfloat16"},
}


def measured(point: Point) -> dict[str, int]:
    """Return what torch.cuda counts of a point on this rank, in a group that was joined."""
    import torch

    from qbench.distributed.session import real_session
    from qbench.step.training_step import build_step

    gc.collect()
    gc.disable()
    with real_session(point) as session:
        step = build_step(point, "cuda", share=session.share)
        if point.distributed is not None and point.distributed.strategy == "fsdp2":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            step.run()
        torch.cuda.synchronize()
    stats = torch.cuda.memory_stats()
    return {
        "peak_allocated_bytes": stats["allocated_bytes.all.peak"],
        "peak_reserved_bytes": stats["reserved_bytes.all.peak"],
    }


def worker(folder: str) -> None:
    """Run the point of a folder as one rank, and write there what it took."""
    from qbench.quick_imports import quick_imports

    with quick_imports():
        import torch
        import torch.distributed as dist

    rank, gpus = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("nccl", init_method=f"file://{folder}/store", rank=rank, world_size=gpus)
    point = Point.model_validate_json(Path(folder, "point.json").read_text("utf-8"))
    Path(folder, f"{rank}.json").write_text(json.dumps(measured(point)), encoding="utf-8")
    os._exit(0)  # The group ends with its processes.


def run_ranks(point: Point, card: str, python: str) -> list[dict[str, int]]:
    """Return what a point took on each rank, on null GPUs of a card."""
    gpus = point.num_gpus
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "point.json").write_text(point.model_dump_json(), encoding="utf-8")
        site = next(Path(python).parents[1].glob("lib/python*/site-packages"))
        base = {**os.environ, **preload_environment(os.environ, site), "PYTHONPATH": os.getcwd()}
        base |= card_environment(find_gpu(card), count=gpus)
        base |= {"WORLD_SIZE": str(gpus), "NULLGPU_STATE": str(Path(folder, "state"))}
        command = [python, "-m", "benchmarks.distributed_null", "--worker", folder]
        started = [
            subprocess.Popen(
                command,
                # Each process sees its own card alone.
                env={**base, "RANK": str(rank), "CUDA_VISIBLE_DEVICES": str(rank)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(gpus)
        ]
        said = [process.communicate(timeout=1800)[1] for process in started]
        if any(process.returncode for process in started):
            raise RuntimeError("\n".join(text[-1500:] for text in said))
        return [json.loads(Path(folder, f"{rank}.json").read_text("utf-8")) for rank in range(gpus)]


def planned(point: Point, card: str, rank: int) -> dict[str, int]:
    """Return the plan of a rank."""
    from qbench.planner.hardware import card_of
    from qbench.planner.trace import trace

    found = trace(point, "cuda", card_of(find_gpu(card)), rank=rank)
    return {
        "peak_allocated_bytes": found.memory.peak_bytes,
        "peak_reserved_bytes": found.reserved_bytes or 0,
    }


def main() -> int:
    """Plan and run every case; print each and write a record of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", default="")
    parser.add_argument("--python", default=".venv-cuda/bin/python")
    parser.add_argument("--gpus", default="2,4")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--cards", default=",".join(CARDS))
    parser.add_argument("--cases", default="")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.worker:
        worker(asked.worker)
        return 0
    rows: list[dict[str, Any]] = []
    names = [name for name in CASES if asked.cases in name]
    grid = itertools.product(
        map(int, asked.gpus.split(",")), asked.models.split(","), asked.cards.split(","), names
    )
    for gpus, model, card, name in grid:
        hub_id, seq_len = MODELS[model]
        point = point_from({"model": hub_id}, {"seq_len": seq_len, **CASES[name], "gpus": gpus})
        real = run_ranks(point, card, asked.python)
        for rank in sorted({0, gpus - 1}):
            plan = planned(point, card, rank)
            off = {key: plan[key] / real[rank][key] - 1 for key in plan}
            row = {"case": name, "model": model, "card": card, "gpus": gpus, "rank": rank}
            rows.append({**row, "plan": plan, "null": real[rank], "off": off})
            print(json.dumps(rows[-1]), flush=True)
        if asked.out:
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            asked.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
