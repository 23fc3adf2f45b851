"""`qbench run` and `qbench report` on a tiny model: run, continue, explain, report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import FAMILIES, write_tiny_model

from qbench.cli.main import main
from qbench.records.store import RECORDS_FILE, read_records


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a scenario of two points that were run."""
    folder = tmp_path_factory.mktemp("run")
    write_tiny_model(folder / "model", "HuggingFaceTB/SmolLM2-135M")
    (folder / "s.yaml").write_text(
        "name: s\nquestion: What?\nbase: {model: ./model, train: {seq_len: 16}}\n"
        "matrix: {precision: [bf16, nf4-dq]}\nmeasure: {warmup_steps: 1, steps: 2, repeats: 1}\n"
    )
    assert main(["run", str(folder / "s.yaml"), "--device", "cpu", "--out", str(folder / "run")]) == 0
    return folder


def run_again(folder: Path, *arguments: str) -> int:
    return main(["run", str(folder / "s.yaml"), "--device", "cpu", "--out", str(folder / "run"), *arguments])


def test_each_point_is_planned_and_measured(folder: Path):
    records = read_records(folder / "run")
    assert [(record.kind, record.outcome) for record in records] == [
        ("plan", "ok"),
        ("plan", "ok"),
        ("measurement", "ok"),
        ("measurement", "ok"),
    ]
    planned, measured = records[0].metrics, records[2].metrics
    assert planned["peak_allocated_bytes"] == measured["peak_allocated_bytes"]


def test_a_second_run_has_nothing_to_do(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert run_again(folder) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{folder / 'run'}: 4 results (nothing to do; 4already existed)\n"
    assert captured.err == ""


def test_a_torn_last_line_is_repaired_with_a_notice(folder: Path, capsys: pytest.CaptureFixture[str]):
    with (folder / "run" / RECORDS_FILE).open("a") as stream:
        stream.write('{"schema_version": 1, "run_')
    assert run_again(folder) == 0
    captured = capsys.readouterr()
    assert "4already existed" in captured.out
    (line,) = captured.err.splitlines()
    assert "torn" in line


def test_explain_says_why_and_runs_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert run_again(folder, "--explain") == 0
    assert capsys.readouterr().out == f"{folder / 'run'}: 0 of 4 would run, 4 are finished\n"
    monkeypatch.setenv("CUDA_MODULE_LOADING", "EAGER")
    assert run_again(folder, "--explain") == 0
    assert capsys.readouterr().out.splitlines() == [
        "measure #1 model bf16 r=16 b=1 s=16: CUDA_MODULE_LOADING changed: None -> EAGER",
        "measure #1 model nf4-dq r=16 b=1 s=16: CUDA_MODULE_LOADING changed: None -> EAGER",
        f"{folder / 'run'}: 2 of 4 would run, 2 are finished",
    ]
    assert len(read_records(folder / "run")) == 4


def test_explain_as_json_is_one_document(folder: Path, capsys: pytest.CaptureFixture[str]):
    grown = folder / "grown.yaml"
    grown.write_text((folder / "s.yaml").read_text().replace("[bf16, nf4-dq]", "[bf16, nf4-dq, fp32]"))
    arguments = ["run", str(grown), "--device", "cpu", "--out", str(folder / "run"), "--explain", "--json"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    document = json.loads(captured.out)
    assert (document["run"], document["finished"]) == (str(folder / "run"), 4)
    told = [(row["kind"], row["repeat"], row["reason"]) for row in document["to_run"]]
    assert told == [("plan", None, "new"), ("measurement", 0, "new")]


def test_a_run_as_json_is_one_document(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert run_again(folder, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {"run": str(folder / "run"), "results": 4, "kept": 4, "outcomes": {}}


def test_explain_of_a_folder_that_is_not_there_makes_none(folder: Path, capsys: pytest.CaptureFixture[str]):
    out = folder / "other"
    assert main(["run", str(folder / "s.yaml"), "--device", "cpu", "--out", str(out), "--explain"]) == 0
    assert capsys.readouterr().out.count(": new\n") == 4
    assert not out.exists()


def test_a_point_that_fails_is_told_with_its_reason_and_the_exit_code_is_3(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    file = folder / "bad.yaml"
    text = (folder / "s.yaml").read_text()
    file.write_text(text.replace("precision: [bf16, nf4-dq]", "target_modules: [[q_proj], [nowhere]]"))
    assert main(["run", str(file), "--device", "cpu", "--out", str(folder / "bad")]) == 3
    captured = capsys.readouterr()
    assert captured.out == f"{folder / 'bad'}: 4 results (2 error, 2 ok)\n"
    assert len([line for line in captured.err.splitlines() if line.startswith("    error: ")]) == 2
    assert "nowhere" in captured.err


def test_the_report_names_its_files_and_gathers_once(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from qbench.report import content

    gathered = []
    original = content.gather_content
    monkeypatch.setattr(content, "gather_content", lambda *given: gathered.append(1) or original(*given))
    assert main(["report", str(folder / "run"), "--out", str(folder / "report")]) == 0
    out = capsys.readouterr().out
    assert "QLoRA (nf4-dq)" in out
    assert out.splitlines()[-1] == f"report: {folder / 'report' / 'report.html'}"
    names = {path.name for path in (folder / "report").iterdir()}
    assert names - {"report.parquet"} == {"report.html", "report.md", "report.csv", "report.charts.csv"}
    assert gathered == [1]


def test_targets_that_match_nothing_are_bad_input(tmp_path, capsys) -> None:
    model = write_tiny_model(tmp_path / "model", FAMILIES["llama"])
    scenario = tmp_path / "targets.yaml"
    scenario.write_text(
        "name: targets\nquestion: Which error?\n"
        f"base: {{model: {model}, lora: {{target_modules: [qproj]}}, train: {{seq_len: 16}}}}\n"
        "measure: {steps: 1, repeats: 1}\n"
    )
    assert main(["run", str(scenario), "--device", "cpu", "--out", str(tmp_path / "run")]) == 2
    assert "target_modules qproj match no layer" in capsys.readouterr().err
