"""The grid's rows, run on null GPUs: equal to plans, and what was measured once is not measured again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qbench.nullgpu.launcher import preload_environment
from qbench.records.store import read_records
from tests.tiny import FAMILIES, OTHER_FAMILIES, write_tiny_model

pytestmark = pytest.mark.nullgpu

RUN = """
import json, sys
from dataclasses import replace
from pathlib import Path
from qbench.runs.null_grid import grid_rows, run_grid
model, experts, folder = sys.argv[1:]
row = replace(grid_rows()[0], gpu="RTX 3070", model=model, seq_len=64)
rows = [row, replace(row, batch=64, seq_len=8192)]
row = replace(row, model=experts, seq_len=2500, batch=1, lora_dropout=0)
rows += [replace(row, gpu=gpu) for gpu in ("H100 SXM", "L4")]
print(json.dumps([(found.is_equal, found.on_null.outcome) for found in run_grid(rows, Path(folder))]))
"""


def test_a_second_run_measures_nothing_again(tmp_path: Path) -> None:
    sizes = {"vocab_size": 32_000, "max_position_embeddings": 8192}
    model, folder = write_tiny_model(tmp_path / "model", FAMILIES["llama"], **sizes), tmp_path / "run"
    # 5000 tokens to sort for two experts each, which takes cub; grouped products on the H100 only.
    experts = write_tiny_model(
        tmp_path / "experts", OTHER_FAMILIES["qwen3_moe"][0], max_position_embeddings=4096
    )
    command = [sys.executable, "-c", RUN, model, experts, str(folder)]
    for _ in range(2):
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**os.environ, **preload_environment()},
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == [[True, "ok"], [True, "oom"], [True, "ok"], [True, "ok"]]
        assert [record.outcome for record in read_records(folder)] == ["ok", "oom", "ok", "ok"]
