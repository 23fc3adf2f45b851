"""`qbench run-point`, and `qbench run --points`, which sends points out and takes their results in."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import write_tiny_model

from qbench.cli.main import main
from qbench.records.store import RECORDS_FILE, read_records

Run = Callable[..., int]


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a scenario of two points, of which the second cannot be measured in its time."""
    folder = tmp_path_factory.mktemp("carried")
    write_tiny_model(folder / "model", "HuggingFaceTB/SmolLM2-135M")
    file = folder / "s.yaml"
    file.write_text(
        "name: s\nquestion: Can it be carried?\nbase: {model: ./model, train: {seq_len: 16}}\n"
        "matrix: {r: [4, 8]}\nmeasure: {warmup_steps: 1, steps: 2, repeats: 1}\n"
    )
    return file


@pytest.fixture
def run(scenario: Path, tmp_path: Path) -> Run:
    """Return `qbench run` on the scenario, into a run folder and a folder of points of its own."""
    where = ["--device", "cpu", "--out", str(tmp_path / "run"), "--points", str(tmp_path / "points")]
    return lambda *arguments: main(["run", str(scenario), *where, *arguments])


def requests(folder: Path) -> list[Path]:
    return sorted((folder / "points").glob("*.point.json"))


def result_of(request: Path) -> Path:
    return request.with_name(request.name.replace(".point.", ".result."))


def test_points_go_out_come_back_and_are_finished(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run() == 0
    assert [record.kind for record in read_records(tmp_path / "run")] == ["plan", "plan"]
    first, second = requests(tmp_path)
    assert f"{tmp_path / 'points'}: 2 to measure; run `qbench run-point " in capsys.readouterr().out

    assert main(["run-point", str(first), str(result_of(first))]) == 0
    assert capsys.readouterr().out == f"{result_of(first)}: ok\n"
    (record,) = read_records(result_of(first))
    assert (record.kind, record.outcome, record.detail["repeat"]) == ("measurement", "ok", 0)
    assert record.environment["inputs"].keys() == {"config.json"}

    # As if another machine had done it, with time for the first point only.
    result_of(first).write_text(
        result_of(first)
        .read_text()
        .replace(f'"device_name":"{record.environment["device_name"]}"', '"device_name":"abacus"')
    )
    late = json.loads(second.read_text())
    late["measure"]["timeout_s"] = 0.01
    second.write_text(json.dumps(late))
    assert main(["run-point", str(second), str(result_of(second))]) == 3
    (record,) = read_records(result_of(second))
    assert record.outcome == "timeout"
    capsys.readouterr()

    assert run("--json") == 3
    document = json.loads(capsys.readouterr().out)
    assert (document["outcomes"], document["to_measure"]) == ({"ok": 1, "timeout": 1}, 1)
    (again,) = requests(tmp_path)
    assert json.loads(again.read_text())["point"]["lora"]["r"] == 8

    # Nothing is taken twice, and what is still to be done is measured.
    assert run() == 0
    assert len(read_records(tmp_path / "run")) == 4
    assert main(["run-point", str(again), str(result_of(again))]) == 0
    assert run() == 0
    assert requests(tmp_path) == []
    planned, *_, measured = read_records(tmp_path / "run")[1:]
    assert measured.metrics["peak_allocated_bytes"] == planned.metrics["peak_allocated_bytes"]
    capsys.readouterr()
    assert run("--explain") == 0
    assert "0 of 4 would run" in capsys.readouterr().out


def test_results_that_are_none_are_told_and_left_alone(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run()
    stored = (tmp_path / "run" / RECORDS_FILE).read_text()
    (tmp_path / "points" / "half.result.json").write_text('{"schema_version": 1, "run')
    (tmp_path / "points" / "other.result.json").write_text(
        stored.splitlines()[0].replace('"r":4', '"r":5') + "\n"
    )
    capsys.readouterr()
    assert run() == 0
    captured = capsys.readouterr()
    assert "is not a point of this scenario; left out" in captured.err
    assert (tmp_path / "run" / RECORDS_FILE).read_text() == stored


def test_settings_of_the_request_are_those_of_the_measurement(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run()
    # What carries the point has its own idea.
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("CUDA_MODULE_LOADING", "EAGER")
    request, *_ = requests(tmp_path)
    # A process of its own: the fork server of this one has its settings already.
    command = [sys.executable, "-m", "qbench", "run-point", str(request), str(result_of(request))]
    subprocess.run(command, check=True, capture_output=True)
    (record,) = read_records(result_of(request))
    assert record.environment["settings"]["OMP_NUM_THREADS"] == "1"
    assert "CUDA_MODULE_LOADING" not in record.environment["settings"]


def test_bad_input_is_one_line_and_exit_code_2(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run()
    request, *_ = requests(tmp_path)
    capsys.readouterr()
    for arguments in (
        [str(tmp_path / "nothing.json"), str(tmp_path / "result.json")],
        [str(request), str(tmp_path / "no" / "folder" / "result.json")],
    ):
        assert main(["run-point", *arguments]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--address", "auto"], "add --executor ray"),
        (["--gpus-per-point", "1"], "add --executor ray"),
        (["--executor", "ray", "--gpus-per-point", "0"], "at least 1"),
        (["--executor", "ray", "--gpus-per-point", "1", "--device", "cpu"], "for GPUs"),
        (["--executor", "ray", "--address", "auto"], "say --device cuda or --device cpu"),
        (["--points", "p"], "say --device cuda or --device cpu"),
        (["--points", "p", "--executor", "ray"], "omit one of the two"),
    ],
)
def test_flags_that_do_not_go_together(
    scenario: Path, flags: list[str], says: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["run", str(scenario), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_files_of_others_stay(run: Run, tmp_path: Path):
    folder = tmp_path / "points"
    folder.mkdir()
    others = [folder / "00001-0123456789ab-1.point.json", folder / "t-00001-0123456789ab-1.point.json"]
    for file in others:
        file.write_text("{}")
    old = folder / "s-00007-0123456789ab-1.point.json"
    old.write_text("{}")
    assert run() == 0
    assert all(file.read_text() == "{}" for file in others)
    assert not old.exists()
    assert len(requests(tmp_path)) == len(others) + 2
