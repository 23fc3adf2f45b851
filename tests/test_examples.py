"""The examples run as they stand, on a small model where they take one; `test_notebook` runs the tour."""

from __future__ import annotations

import contextlib
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import typer
from tiny import write_tiny_model

from qbench.cli.main import app_of, main
from qbench.records.store import read_records

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in which the paths of the repository that examples name lead to it."""
    for name in ("examples", "scenarios", "reports"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_model(tmp_path_factory.mktemp("model"), "meta-llama/Llama-3.1-8B")


def program(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def commands(name: str) -> list[list[str]]:
    lines = (EXAMPLES / name).read_text(encoding="utf-8").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("qbench ")]


def script(name: str) -> None:
    """Run the commands of a shell script in this process, which has the libraries loaded."""
    for words in commands(name):
        with contextlib.ExitStack() as stack:
            if ">" in words:
                *words, _, target = words
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(target, "w"))))
            assert main(words) == 0, words


def test_every_example_is_in_the_list_of_examples():
    listed = set(re.findall(r"\]\(([\w./-]+)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    files = {file.relative_to(EXAMPLES).as_posix() for file in EXAMPLES.rglob("*") if file.is_file()}
    helpers = {"README.md", "sweep.yaml", "container/Dockerfile.dockerignore"}
    assert {name for name in files if "__pycache__" not in name} - helpers == listed


def test_a_project_is_sized(
    here: Path, tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    program("size_a_project.py", tiny, "128", monkeypatch=monkeypatch)
    shown = capsys.readouterr().out
    assert "fits on RTX 4090" in shown
    assert "256 tokens, limited by model" in shown  # The tiny model has 256 positions.
    assert shown.count("\n") == 6


def test_a_step_is_planned_for_two_gpus(
    here: Path, tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    program("two_gpus.py", tiny, "128", monkeypatch=monkeypatch)
    names = re.findall(r"^(.*?) +[\d.]+ GiB each: fits$", capsys.readouterr().out, re.M)
    assert names == ["1 GPU", "2 GPUs, ddp", "2 GPUs, fsdp2"]


def test_a_sweep_has_a_report_and_a_gate_passes(here: Path):
    script("sweep_and_report.sh")
    assert len(read_records(here / "runs" / "sweep")) == 6
    assert "QLoRA" in (here / "runs" / "sweep" / "report" / "report.html").read_text(encoding="utf-8")
    script("ci_gate.sh")
    assert len(read_records(here / "runs" / "baseline.jsonl")) == 2


def test_the_comparison_of_two_environments_is_a_command():
    (words,) = commands("ab_of_an_upgrade.sh")
    group = typer.main.get_command(app_of(["ab"]))
    with group.make_context("qbench", ["ab"], resilient_parsing=True) as outer:
        given = group.get_command(outer, "ab").make_context("ab", words[1:], parent=outer).params
    assert given["plan_only"]
    assert (ROOT / str(given["scenario"] if "scenario" in given else words[1])).is_file()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*pin_memory.*:UserWarning")
def test_a_training_of_ones_own_is_near_its_plan(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    program("callback.py", "runs/mine", monkeypatch=monkeypatch)
    shown = re.search(r"measured ([\d,]+) bytes, planned ([\d,]+)", capsys.readouterr().out)
    assert shown is not None
    measured, planned = (int(size.replace(",", "")) for size in shown.groups())
    assert measured == pytest.approx(planned, rel=1e-3)


def test_records_are_read_with_pandas_and_duckdb(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("duckdb")
    program("read_records.py", monkeypatch=monkeypatch)
    shown = capsys.readouterr().out
    peaks = {
        record.point.precision: record.peak_allocated_bytes
        for record in read_records(ROOT / "reports" / "demo")
        if record.kind == "plan"
    }
    assert all(f"('{precision}', 'plan', 1, {peak})" in shown for precision, peak in peaks.items())


@pytest.mark.nullgpu
def test_a_script_of_trl_runs_dry(here: Path, capsys: pytest.CaptureFixture[str]):
    trainer = str(EXAMPLES / "train_trl.py")
    asked = [
        "dryrun",
        "--gpu",
        "RTX 4090",
        "--synthetic",
        "--out",
        "runs/dry",
        "--json",
        "--",
        sys.executable,
    ]
    assert main([*asked, trainer]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["outcome"] == "ok"
    assert any("Qwen/Qwen2.5-0.5B" in each for each in record["detail"]["stand_ins"])
