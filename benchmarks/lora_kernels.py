"""Plans of fused LoRA kernels against axolotl's own, run on the null GPU: bytes allocated by phase.

    PYTHONPATH=. python -m benchmarks.lora_kernels AXOLOTL/src CUDA_PYTHON

AXOLOTL/src is the source folder of a checkout of axolotl (067b021 is followed), CUDA_PYTHON the interpreter
of an environment with the CUDA build of torch, bitsandbytes, peft, transformers and cut-cross-entropy. Writes
reports/kernels/lora_kernels.{md,json}.
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

SCENARIO = """
name: lora-kernels
question: Do fused LoRA kernels allocate as planned?
base:
  model: Qwen/Qwen2.5-0.5B
  lora: {r: 16, lora_alpha: 32}
  train: {per_device_train_batch_size: 2, seq_len: 1024, optim: adamw_8bit, autocast: bf16, recipe: axolotl,
          loss_type: cut_cross_entropy}
matrix:
  precision: [bf16, nf4-dq]
  lora_dropout: [0.0, 0.05]
  gradient_checkpointing: [true, false]
  lora_kernels: [axolotl]
include:
  - {precision: nf4, lora_kernels: attention, gradient_checkpointing: false}
  - {precision: bf16, lora_kernels: mlp, gradient_checkpointing: false}
  - {model: google/gemma-3-270m, precision: bf16, lora_dropout: 0.0, gradient_checkpointing: false}
  - {model: google/gemma-3-270m, precision: nf4-dq, lora_dropout: 0.0}
plan: {gpus: [RTX 4090]}
measure: {warmup_steps: 1, steps: 2, repeats: 1}
"""
PHASES = ("forward", "loss", "backward", "optimizer")
OUT = Path("reports/kernels")


def main() -> None:
    """Run the points, and write both sides of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("axolotl", type=Path, help="src folder of a checkout of axolotl")
    parser.add_argument("python", help="interpreter with the CUDA build of torch")
    asked = parser.parse_args()
    rows = _rows(_run(asked.axolotl, asked.python))
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "lora_kernels.json").write_text(json.dumps(rows, indent=1) + "\n")
    (OUT / "lora_kernels.md").write_text("\n".join(_text(rows)) + "\n")


def _run(axolotl: Path, python: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        scenario, out = Path(folder, "lora-kernels.yaml"), Path(folder, "out")
        scenario.write_text(SCENARIO)
        paths = [str(Path.cwd()), str(axolotl), os.environ.get("PYTHONPATH", "")]
        subprocess.run(
            [
                *(sys.executable, "-m", "qbench", "run", str(scenario), "--device", "null"),
                *("--gpu", "RTX 4090", "--python", python, "--out", str(out)),
            ],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            check=True,
        )
        return [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]


def _rows(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    plans = {record["point_id"]: record for record in records if record["kind"] == "plan"}
    rows = []
    for record in (record for record in records if record["kind"] == "measurement"):
        plan, point = plans[record["point_id"]], record["point"]
        rows.append(
            {
                "model": point["model"],
                "precision": point["precision"],
                "lora_dropout": point["lora"]["lora_dropout"],
                "gradient_checkpointing": point["train"]["gradient_checkpointing"],
                "lora_kernels": point["train"].get("lora_kernels", "axolotl"),
                "planned": _bytes(plan),
                "null": _bytes(record) if record["outcome"] == "ok" else record["outcome"],
            }
        )
    return rows


def _bytes(record: dict[str, Any]) -> dict[str, int]:
    phases = record["detail"]["phases"]
    return {**{name: phases[name] for name in PHASES}, "reserved": record["metrics"]["peak_reserved_bytes"]}


def _text(rows: list[dict[str, Any]]) -> list[str]:
    names = (*PHASES, "reserved")
    lines = [
        "# Fused LoRA kernels: planned against axolotl's own on the null GPU",
        "",
        "Written by `python -m benchmarks.lora_kernels`. Batch 2 x 1,024 tokens, RTX 4090; a cell is bytes "
        "planned less bytes measured, as a share of those measured.",
        "",
        f"| model | precision | dropout | checkpointing | kernels | {' | '.join(names)} |",
        f"|---|---|---|---|---|{'---|' * len(names)}",
    ]
    for row in rows:
        planned, null = row["planned"], row["null"]
        cells = (
            [null] if isinstance(null, str) else [_difference(planned[name], null[name]) for name in names]
        )
        settings = ("model", "precision", "lora_dropout", "gradient_checkpointing", "lora_kernels")
        lines.append(f"| {' | '.join([*(str(row[name]) for name in settings), *cells])} |")
    return lines


def _difference(planned: int, measured: int) -> str:
    return "equal" if planned == measured else f"{100 * (planned / measured - 1):+.3f} %"


if __name__ == "__main__":
    main()
