"""Tests on a null GPU: pytest starts itself again, and a process that was not started for it says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import qbench
from qbench.errors import QbenchError

TESTS = """
import os
import pytest
import torch
import qbench

def step(rows):
    layer = torch.nn.Linear(1024, 1024, bias=False, device="cuda")
    layer(torch.ones(rows, 1024, device="cuda")).sum().backward()

def test_limit():
    step(8)
    assert torch.cuda.max_memory_allocated() < 40e6
    assert torch.cuda.get_device_name() == "NVIDIA RTX 4090 (null GPU)"

def test_fixture(null_gpu):
    step(8)
    record = null_gpu.record("mine")
    assert (record.kind, record.card, record.point.label) == ("dryrun", "RTX 4090", "mine")
    # The layer and its gradient have 4 MiB each; input and output 32 KiB.
    assert 8 * 2**20 < record.peak_allocated_bytes == null_gpu.peak_allocated_bytes < 30 * 2**20

def test_too_much():
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(30 << 30, dtype=torch.uint8, device="cuda")

def test_block():
    with qbench.null_gpu("4090") as seen:
        torch.ones(1 << 20, device="cuda")
    assert seen.peak_allocated_bytes == 4 << 20
    with pytest.raises(qbench.dryrun.in_process.QbenchError, match="is the RTX 4090, not the T4"):
        with qbench.null_gpu("T4"):
            pass
    assert torch.arange(3, device="cuda").sum().item() == 3
"""


def pytest_run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_mine.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=600, check=False, env=env
    )


@pytest.mark.nullgpu
def test_pytest_starts_itself_again_with_the_card(tmp_path: Path) -> None:
    done = pytest_run(tmp_path, "--qbench-null-gpu", "4090")
    assert "4 passed" in done.stdout, done.stdout + done.stderr


def test_an_unknown_card_is_bad_usage(tmp_path: Path) -> None:
    done = pytest_run(tmp_path, "--qbench-null-gpu", "RTX 9999")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--qbench-null-gpu: GPU 'RTX 9999' is not in the catalog" in done.stderr


def test_a_process_that_was_not_started_for_it_says_how() -> None:
    with (
        pytest.raises(QbenchError, match="start it by `pytest --qbench-null-gpu NAME`"),
        qbench.null_gpu("T4"),
    ):
        pass
