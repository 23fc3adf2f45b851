"""`qbench run --device null`: what does not go together, and where there can be no null GPU, is one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qbench.cli.main import main
from qbench.measure import cuda_python


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--device", "null"], "--device null needs a card; give --gpu NAME, as `qbench gpus` lists them"),
        (["--gpu", "T4"], "--gpu and --python are for --device null; plan.gpus names cards to plan for"),
        (["--device", "null", "--gpu", "T5"], "GPU 'T5' is not in the catalog"),
        (["--device", "null", "--gpu", "MI300X"], "MI300X has no CUDA; name an NVIDIA GPU"),
        (["--device", "null", "--gpu", "T4", "--profile"], "--device null conflicts with --points"),
        (["--device", "null", "--gpu", "T4", "--python", "/no/python"], "/no/python cannot be run"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    assert main(["run", "demo.yaml", *arguments]) == 2
    said = capsys.readouterr().err
    assert problem in said
    assert len(said.strip().splitlines()) == 1


def test_a_torch_without_cuda_is_told_where_one_is_looked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cuda_python, "torch_has_cuda", lambda: False)
    monkeypatch.setattr(cuda_python, "FOLDER", "no-such-folder")
    monkeypatch.delenv("QBENCH_CUDA_PYTHON", raising=False)
    assert main(["run", "demo.yaml", "--device", "null", "--gpu", "T4"]) == 2
    assert "run `make .venv-cuda`, or name its Python with --python or QBENCH_CUDA_PYTHON" in (
        capsys.readouterr().err
    )


ANSWERS = """#!/bin/sh
case "$*" in *run_module*) shift 3; echo "there: $QBENCH_CUDA_PYTHON: $*"; exit 5;; esac
exec REAL "$@"
"""


def test_the_command_is_run_by_the_python_that_has_cuda(tmp_path: Path) -> None:
    other = tmp_path / "python"
    other.write_text(ANSWERS.replace("REAL", sys.executable))
    other.chmod(0o755)
    arguments = ["run", "demo.yaml", "--device", "null", "--gpu", "T4"]
    done = subprocess.run(
        [sys.executable, "-m", "qbench", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "QBENCH_CUDA_PYTHON": str(other)},
    )
    assert done.returncode == 5, done.stderr
    assert done.stdout.strip() == f"there: {other}: qbench {' '.join(arguments)}"
