from __future__ import annotations

import json
import pickle
from functools import partial
from pathlib import Path

import pytest
from tiny import tiny_point, write_tiny_model

from qbench.cli.main import main
from qbench.measure.diagnostics import Diagnostics, diagnose
from qbench.measure.executors.local import LocalExecutor
from qbench.measure.failures import attempt
from qbench.measure.task import Attempt, Measurement
from qbench.records.store import RECORDS_FILE, read_records
from qbench.scenario.schema import Device, Point

BOTH = Diagnostics(memory_snapshot=True, profile=True)


class InThisProcess:
    """An executor that saves the start of a process."""

    def run(self, work: Attempt, timeout_s: float, device: Device) -> Measurement:
        return attempt(work)


def point(folder: Path) -> Point:
    return tiny_point(write_tiny_model(folder / "model", "HuggingFaceTB/SmolLM2-135M"))


def test_snapshot_trace_and_table_are_written(tmp_path: Path):
    one = point(tmp_path)
    done = diagnose(one, "cpu", tmp_path / "run", BOTH, InThisProcess(), 60)
    assert done.outcome == "ok"
    ops, snapshot, trace = (Path(file) for file in done.detail["files"])
    assert {file.parent for file in (ops, snapshot, trace)} == {tmp_path / "run" / "diagnostics"}
    events = json.loads(trace.read_text())["traceEvents"]
    assert {"aten::mm", "Optimizer.step#AdamW.step"} <= {event.get("name") for event in events}
    assert f"{one.label}, one step on cpu" in ops.read_text()
    assert "aten::mm" in ops.read_text()
    (history,) = pickle.loads(snapshot.read_bytes())["device_traces"]
    assert {"alloc", "free_completed"} <= {entry["action"] for entry in history}


def test_only_what_is_wanted_is_made_and_what_was_there_is_replaced(tmp_path: Path):
    one = point(tmp_path)
    stale = tmp_path / "diagnostics" / f"{one.point_id}.trace.json"
    stale.parent.mkdir()
    stale.write_text("old")
    wanted = Diagnostics(memory_snapshot=True, profile=False)
    done = diagnose(one, "cpu", tmp_path, wanted, InThisProcess(), 60)
    assert done.detail["files"] == [str(stale.parent / f"{one.point_id}.pickle")]


def test_a_point_that_fails_leaves_no_half_file(tmp_path: Path):
    broken = point(tmp_path).model_copy(update={"model": str(tmp_path / "nowhere")})
    done = diagnose(broken, "cpu", tmp_path, BOTH, InThisProcess(), 60)
    assert done.outcome == "error"
    assert done.detail["files"] == []
    assert list((tmp_path / "diagnostics").iterdir()) == []


def test_a_worker_that_hangs_is_an_outcome(tmp_path: Path):
    done = diagnose(point(tmp_path), "cpu", tmp_path, BOTH, LocalExecutor(), 0.01)
    assert done.outcome == "timeout"


SCENARIO = """
name: s
question: What?
base: {model: ./model, train: {seq_len: 16}}
measure: {warmup_steps: 0, steps: 1, repeats: 1}
"""


def test_run_makes_diagnostics_after_it_and_keeps_its_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    point(tmp_path)
    (tmp_path / "s.yaml").write_text(SCENARIO)
    run = partial(main, ["run", str(tmp_path / "s.yaml"), "--device", "cpu", "--out", str(tmp_path / "run")])
    assert run() == 0
    before = (tmp_path / "run" / RECORDS_FILE).read_bytes()
    again = ["run", str(tmp_path / "s.yaml"), "--device", "cpu", "--out", str(tmp_path / "run"), "--profile"]
    assert main(again) == 0
    assert (tmp_path / "run" / RECORDS_FILE).read_bytes() == before
    point_id = read_records(tmp_path / "run")[0].point_id
    assert (tmp_path / "run" / "diagnostics" / f"{point_id}.trace.json").exists()
    # Diagnostics that cannot be written change neither records nor exit code.
    (tmp_path / "run" / "diagnostics" / f"{point_id}.trace.json").unlink()
    (tmp_path / "run" / "diagnostics" / f"{point_id}.ops.txt").unlink()
    (tmp_path / "run" / "diagnostics").rmdir()
    (tmp_path / "run" / "diagnostics").write_text("a file")
    capsys.readouterr()
    assert main(again) == 0
    assert "no full diagnostics of model bf16" in capsys.readouterr().err
    assert (tmp_path / "run" / RECORDS_FILE).read_bytes() == before


def test_diagnostics_are_refused_where_points_run_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    point(tmp_path)
    (tmp_path / "s.yaml").write_text(SCENARIO)
    assert main(["run", str(tmp_path / "s.yaml"), "--executor", "ray", "--profile"]) == 2
    assert "need --executor local" in capsys.readouterr().err
