"""Ctrl-C, as a terminal sends it: to the runner, its fork server and all that they started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import write_tiny_model

from qbench.records.store import read_records

ROOT = Path(__file__).parents[2]
LAST_LINE = "qbench: interrupted; finished results are kept, and the same command continues from there"


def scenario_file(folder: Path) -> Path:
    """Write a scenario whose measurements take minutes; return its path."""
    model = write_tiny_model(folder / "model", "HuggingFaceTB/SmolLM2-135M")
    file = folder / "long.yaml"
    file.write_text(
        f"name: long\nquestion: Can it be stopped?\nbase: {{model: {model}, train: {{seq_len: 16}}}}\n"
        "measure: {steps: 100000, repeats: 1}\n"
    )
    return file


def descendants(pid: int) -> dict[int, int]:
    """Return the session of each process that runs below one, by process id."""
    below: dict[int, int] = {}
    while True:
        found = {
            child: session
            for child, (parent, session) in _running().items()
            if parent in (pid, *below) and child not in below
        }
        if not found:
            return below
        below |= found


def _running() -> dict[int, tuple[int, int]]:
    """Return parent and session of each process."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent, _, session, *_ = stat.read_text().rpartition(")")[2].split()
            if state not in "ZX":
                found[int(stat.parent.name)] = (int(parent), int(session))
    return found


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def worker_is_there(runner: int) -> bool:
    """Say whether a worker runs: unlike the fork server it has a session of its own."""
    return any(session != runner for session in descendants(runner).values())


@pytest.mark.parametrize("with_worker", [False, True], ids=["the server starts", "a point is measured"])
def test_ctrl_c_ends_all_keeps_what_is_finished_and_says_how_to_go_on(tmp_path: Path, with_worker: bool):
    log = tmp_path / "log"
    command = [sys.executable, "-m", "qbench", "run", str(scenario_file(tmp_path)), "--device", "cpu"]
    with log.open("w") as stream:
        runner = subprocess.Popen(
            [*command, "--out", str(tmp_path / "run")],
            cwd=ROOT,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            # A shell starts what it runs in the background with the signal ignored, and that is inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        assert wait_for(lambda: "measure #1" in log.read_text(), 300), log.read_text()
        assert not with_worker or wait_for(lambda: worker_is_there(runner.pid), 300)
        time.sleep(0.5)
        everyone = set(descendants(runner.pid))
        assert worker_is_there(runner.pid) == with_worker
        assert everyone
        os.killpg(runner.pid, signal.SIGINT)
        assert runner.wait(timeout=300) == 130, log.read_text()
        lines = log.read_text().splitlines()
        assert lines[-1] == LAST_LINE
        assert len(lines) == 4, lines  # The title, the plan and the measurement stand before it.
        assert [record.kind for record in read_records(tmp_path / "run")] == ["plan"]
        # A server that is still importing ends after that, of its own.
        assert wait_for(lambda: not everyone & set(_running()), 300)
    finally:
        runner.kill()
        runner.wait()
