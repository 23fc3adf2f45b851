"""What a run shows while it goes on: lines in a file, a bar on a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from qbench.cli.progress import ending, shown_progress
from qbench.records.record import Record
from qbench.runs.run import Job, Progress
from qbench.scenario.schema import Point

ROOT = Path(__file__).parents[2]
POINT = Point(model="HuggingFaceTB/SmolLM2-135M")
PLAN, MEASURE = Job(point=POINT, repeat=None), Job(point=POINT, repeat=0)
LABEL = "SmolLM2-135M bf16 r=16 b=1 s=2048"


def record(outcome: str, error: str = "") -> Record:
    detail = {"error": error} if error else {}
    return Record(
        run_id="x", point=POINT, kind="measurement", outcome=outcome, metrics={}, detail=detail  # type: ignore[arg-type]
    )  # fmt: skip


def play() -> None:
    """Show a run of a plan that took 2 s and a measurement that runs out of memory."""
    with shown_progress("demo: 1 point") as watch:
        progress = Progress(total=3, kept=1, left=Counter({"plan": 1, "measurement": 1}))
        progress.begin()
        watch(progress, PLAN, None)
        progress.end("plan", "ok", 2.0)
        progress.timed["measurement"], progress.seconds["measurement"] = 1, 90.0
        progress.begin()
        watch(progress, MEASURE, None)
        progress.end("measurement", "oom", 1.0)
        watch(progress, MEASURE, record("oom", "out of memory\nand more"))


def test_without_a_terminal_each_job_is_a_line(capsys: pytest.CaptureFixture[str]):
    play()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "demo: 1 point",
        f"[2/3] plan {LABEL}",
        f"[3/3] measure #1 {LABEL} (90 s left)",
        "    oom: out of memory",
    ]


def test_a_run_that_does_nothing_shows_nothing(capsys: pytest.CaptureFixture[str]):
    with shown_progress("demo"):
        pass
    assert capsys.readouterr().err == ""


def test_an_ending_without_a_reason_is_its_outcome():
    assert ending(record("timeout")) == "timeout"


def test_on_a_terminal_there_is_a_bar_with_the_time_left():
    main, terminal = pty.openpty()
    command = [sys.executable, "-c", "from tests.cli.test_progress import play; play()"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(command, cwd=ROOT, env=env, stderr=terminal) as child:
        os.close(terminal)
        shown = ""
        while chunk := _read(main):
            shown += chunk
        assert child.wait() == 0
    os.close(main)
    assert "demo: 1 point" in shown
    assert "3/3" in shown
    assert f"measure #1 {LABEL}: oom: out of memory" in shown
    assert "\x1b[" in shown


def _read(descriptor: int) -> str:
    """Return what a terminal shows next, empty when its last writer has left."""
    try:
        return os.read(descriptor, 65536).decode()
    except OSError:
        return ""
