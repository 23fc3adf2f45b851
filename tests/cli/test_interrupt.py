"""Ctrl-C, as a terminal sends it: to the runner, its fork server and all that they started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import write_tiny_model

from qbench.records.store import read_records

ROOT = Path(__file__).parents[2]
LAST_LINE = "qbench: interrupted; what was finished is kept, and the same command goes on from there"


def scenario_file(folder: Path) -> Path:
    """Write a scenario whose measurements take minutes; return its path."""
    model = write_tiny_model(folder / "model", "HuggingFaceTB/SmolLM2-135M")
    file = folder / "long.yaml"
    file.write_text(
        f"name: long\nquestion: Can it be stopped?\nbase: {{model: {model}, train: {{seq_len: 16}}}}\n"
        "measure: {steps: 100000, repeats: 1}\n"
    )
    return file


def processes_in(session: int) -> list[int]:
    """Return the processes of a session, and those whose parent is among them."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] not in "ZX":
            found[int(stat.parent.name)] = (int(fields[1]), int(fields[3]))
    inside = {pid for pid, (_, its_session) in found.items() if its_session == session}
    return [pid for pid, (parent, _) in found.items() if pid in inside or parent in inside]


def wait_for(condition: object, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("pause_s", [0.5, 7.0], ids=["while the fork server starts", "while a point is measured"])
def test_ctrl_c_ends_all_keeps_what_is_finished_and_says_how_to_go_on(tmp_path: Path, pause_s: float):
    log = tmp_path / "log"
    command = [sys.executable, "-m", "qbench", "run", str(scenario_file(tmp_path)), "--device", "cpu"]
    with log.open("w") as stream:
        runner = subprocess.Popen(
            [*command, "--out", str(tmp_path / "run")],
            cwd=ROOT,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        assert wait_for(lambda: "measure #1" in log.read_text(), 60), log.read_text()
        time.sleep(pause_s)
        everyone = processes_in(runner.pid)
        os.killpg(runner.pid, signal.SIGINT)
        assert runner.wait(timeout=20) == 130, log.read_text()
        lines = log.read_text().splitlines()
        assert lines[-1] == LAST_LINE
        assert len(lines) == 4, lines  # The title, the plan and the measurement stand before it.
        assert [record.kind for record in read_records(tmp_path / "run")] == ["plan"]
        assert len(everyone) >= 2
        assert wait_for(lambda: not [p for p in everyone if p in processes_in(runner.pid)], 5)
    finally:
        runner.kill()
        runner.wait()
