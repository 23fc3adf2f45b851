"""Plans against TRL's own trainers on the null GPU: bytes of a whole step.

    PYTHONPATH=. python -m benchmarks.real_trainers CUDA_PYTHON

CUDA_PYTHON is the interpreter of an environment with the CUDA build of torch, trl, peft and bitsandbytes.
Writes reports/trainers/real_trainers.{md,json}.
"""

from __future__ import annotations

import argparse
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
from qbench.scenario.schema import LoraSettings, Point, TrainSettings

GPU = "A100-SXM4-80GB"
OUT = Path("reports/trainers")
STEPS = 3
TRAINERS = {
    "sft": "SFTTrainer",
    "dpo": "DPOTrainer",
    "kto": "KTOTrainer",
    "reward": "RewardTrainer",
    "grpo": "GRPOTrainer",
}
MODELS = ("Qwen/Qwen2.5-0.5B", "meta-llama/Llama-3.2-1B")


def points() -> list[Point]:
    """Return what is run: TRL's trainers with and without a quantized base and checkpointing."""
    found = []
    for task in TRAINERS:
        for model in MODELS if task in ("sft", "dpo") else MODELS[:1]:
            for precision in ("bf16", "nf4-dq"):
                for checkpointing in (True, False):
                    train = TrainSettings(
                        per_device_train_batch_size=2,
                        seq_len=512,
                        gradient_checkpointing=checkpointing,
                        optim="adamw_torch_fused",
                        autocast="bf16",
                        recipe="trl",
                        task=task,
                        max_completion_length=8,
                    )
                    lora = LoraSettings(lora_dropout=0.0)
                    found.append(Point(model=model, precision=precision, lora=lora, train=train))
    return found


def main() -> None:
    """Run each point in a process of its own, plan it, and write both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", help="interpreter with the CUDA build of torch, and trl")
    asked = parser.parse_args()
    rows = [{"point": point.model_dump(mode="json"), **_both(asked.python, point)} for point in points()]
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "real_trainers.json").write_text(json.dumps(rows, indent=1) + "\n")
    (OUT / "real_trainers.md").write_text("\n".join(_text(rows)) + "\n")


def _both(python: str, point: Point) -> dict[str, Any]:
    site = subprocess.check_output(
        [python, "-c", "import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])"], text=True
    ).strip()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "point.json")
        file.write_text(point.model_dump_json())
        environment = {
            **os.environ,
            **card_environment(find_gpu(GPU)),
            **preload_environment(site=Path(site)),
            "PYTHONPATH": str(Path.cwd()),
            "HF_HUB_OFFLINE": "1",
            "CI": "1",
        }
        command = [python, "-m", "benchmarks.inside_trainer", str(file), str(STEPS)]
        subprocess.run(command, env=environment, check=True, stdout=sys.stderr)
        measured = json.loads(file.with_suffix(".result").read_text())
    return {"null": measured, "planned": _planned(point)}


def _planned(point: Point) -> dict[str, int]:
    from qbench.planner.hardware import card_of
    from qbench.planner.trace import trace

    traced = trace(point, "cuda", card_of(find_gpu(GPU)))
    phases = traced.memory.phases
    step = max(phases.get(name, 0) for name in ("forward", "loss", "backward", "optimizer"))
    return {"allocated": step, "at_rest": traced.memory.static_bytes}


def _text(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "# TRL's own trainers on the null GPU, and their plans",
        "",
        f"Written by `python -m benchmarks.real_trainers`: {GPU}, batch 2 x 512 tokens, step {STEPS}; peak "
        "of the memory allocated in a step.",
        "",
        "| trainer | model | precision | checkpointing | null GPU, bytes | planned less that |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        train, point = row["point"]["train"], row["point"]
        measured, planned = row["null"]["allocated"], row["planned"]["allocated"]
        share = "equal" if planned == measured else f"{100 * (planned / measured - 1):+.3f} %"
        name = TRAINERS[train.get("task", "sft")]
        lines.append(
            f"| {name} | {point['model']} | {point['precision']} | {train['gradient_checkpointing']} | "
            f"{measured:,} | {share} |"
        )
    return lines


if __name__ == "__main__":
    main()
