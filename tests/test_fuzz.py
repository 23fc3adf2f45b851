"""Mutated inputs end in a known exit code: few here, thousands by `python -m benchmarks.fuzz`."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.fuzz import Ended, Target, as_json, forked, mutated, problem

ROOT = Path(__file__).parents[1]


def test_no_mutated_input_is_a_finding():
    command = [sys.executable, "-m", "benchmarks.fuzz", "--inputs", "20", "--seed", "11"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
    assert "20 inputs of 15 kinds, seed 11" in done.stdout


def target(run) -> Target:
    return Target(name="t", file="f", seeds=({"a": [1, {"b": 2}]},), write=as_json, run=run)


def test_mutations_repeat_by_their_seed_and_differ():
    made = [mutated(random.Random(seed), target(None)) for seed in (1, 1, *range(2, 30))]
    assert made[0] == made[1]
    assert len(set(made)) > 20


def hang(file: Path) -> int:
    while True:
        pass


@pytest.mark.parametrize(
    ("run", "wrong"),
    [
        (lambda file: 0, None),
        (lambda file: 2, None),
        (lambda file: 1, "exit code 1"),
        (lambda file: 1 // 0, "exit code 99"),
        (lambda file: print("Traceback (most recent call last)") or 0, "a traceback"),
        (hang, "no end within 0.5 s"),
    ],
)
def test_what_is_wrong_is_found(run, wrong: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("benchmarks.fuzz.MOST_WALL_S", 0.5 if run is hang else 30)
    found = problem(target(run), forked(run, tmp_path))
    assert found is wrong or (found is not None and wrong is not None and wrong in found)


def test_much_processor_time_or_memory_is_found():
    assert problem(target(None), Ended(code=0, seconds=1.0, num_bytes=3 << 30, said="")) == "3072 MiB"
    assert (
        problem(target(None), Ended(code=0, seconds=11.0, num_bytes=1, said="")) == "11.0 s of processor time"
    )
