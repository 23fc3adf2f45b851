"""A scenario in two interpreters: real processes, one of them with a package that was changed."""

from __future__ import annotations

import json
import os
import re
import sys
import venv
from pathlib import Path
from typing import Any

import peft
import pytest
from tiny import write_tiny_model

from qbench.cli.main import main
from qbench.records.store import read_records
from qbench.runs.pairs import environments

ROOT = Path(__file__).parents[2]
PATCHED_FILE = Path("tuners/lora/layer.py")
BEFORE = "        self.r[adapter_name] = r\n"
AFTER = BEFORE + "        self.register_buffer('ballast', torch.zeros(256))\n"
"""The changed peft keeps 1024 B beside each adapter of a linear layer."""

SCENARIO = """
name: upgrade
question: What does the other peft change?
base:
  model: ./model
  lora: {r: 4, target_modules: [q_proj]}
  train: {seq_len: 16, gradient_checkpointing: false}
measure: {warmup_steps: 0, steps: 1, repeats: 1}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a scenario of one tiny point and an interpreter that has another peft."""
    folder = tmp_path_factory.mktemp("ab")
    write_tiny_model(folder / "model", "HuggingFaceTB/SmolLM2-135M")
    (folder / "s.yaml").write_text(SCENARIO)
    site = layered_environment(folder / "other")
    put_patched_peft(site)
    return folder


def layered_environment(folder: Path) -> Path:
    """Make an environment that has all packages of this one beneath its own; return where its own go."""
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    paths = [*(path for path in sys.path if path.endswith("-packages")), str(ROOT)]
    (site / "beneath.pth").write_text("\n".join(paths) + "\n")
    return site


def put_patched_peft(site: Path, version: str = "99.0") -> None:
    """Put a copy of peft with one change into an environment, as some version; the rest are links."""
    original, copy = Path(peft.__file__).parent, site / "peft"
    real = [original, *(original / folder for folder in list(PATCHED_FILE.parents)[-2::-1])]
    for folder in real:
        (copy / folder.relative_to(original)).mkdir()
        for source in folder.iterdir():
            if source not in real and source.name not in (PATCHED_FILE.name, "__pycache__"):
                (copy / source.relative_to(original)).symlink_to(source)
    text = (original / PATCHED_FILE).read_text(encoding="utf-8")
    assert text.count("class LoraLayer") == 1
    assert BEFORE in text
    (copy / PATCHED_FILE).write_text(text.replace(BEFORE, AFTER, 1), encoding="utf-8")
    facts = site / f"peft-{version}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: peft\nVersion: {version}\n")
    (released,) = original.parent.glob("peft-*.dist-info")
    (facts / "RECORD").write_text((released / "RECORD").read_text())


def compared(folder: Path, b: str, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    arguments = ["--a", sys.executable, "--b", b, "--device", "cpu", "--out", str(folder / "out")]
    assert main(["ab", str(folder / "s.yaml"), *arguments, *more, "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def differing(document: dict[str, Any]) -> dict[str, float]:
    (point,) = document["points"]
    return {name: each["difference"] for name, each in point["metrics"].items() if not each["equal"]}


@pytest.mark.slow
def test_the_same_interpreter_twice_shows_no_difference(folder: Path, capsys: pytest.CaptureFixture[str]):
    document = compared(folder, sys.executable, capsys)
    assert document["packages"] == []
    assert document["same_code"]
    assert differing(document) == {}
    assert set(document["points"][0]["metrics"]) >= {"trainable_params", "peak_allocated_bytes"}
    records = [read_records(folder / "out" / side)[-1] for side in ("a", "b")]
    assert [record.outcome for record in records] == ["ok", "ok"]
    assert records[0].run_id.removesuffix("-a") == records[1].run_id.removesuffix("-b")


@pytest.mark.slow
def test_a_package_that_differs_shows_in_memory(folder: Path, capsys: pytest.CaptureFixture[str]):
    document = compared(folder, str(folder / "other" / "bin" / "python"), capsys)
    (package,) = document["packages"]
    assert (package["name"], package["a"]) == ("peft", peft.__version__)
    assert re.fullmatch(r"99\.0 changed \([0-9a-f]{12}\)", package["b"])
    # Two layers with one adapter each.
    assert differing(document) == {"static_bytes": 2048, "peak_allocated_bytes": 2048}
    assert document["points"][0]["breakdown_difference_bytes"] == {"weights": 2048}
    assert document["points"][0]["metrics"]["trainable_params"]["equal"]


@pytest.mark.slow
def test_plans_tell_the_difference_without_measuring(folder: Path, capsys: pytest.CaptureFixture[str]):
    document = compared(folder, str(folder / "other" / "bin" / "python"), capsys, "--plan-only")
    assert differing(document) == {"static_bytes": 2048, "peak_allocated_bytes": 2048}
    assert document["points"][0]["step_time_s"] is None


def test_a_package_that_was_edited_under_its_version_is_told(tmp_path: Path):
    put_patched_peft(layered_environment(tmp_path / "edited"), peft.__version__)
    sides = environments(sys.executable, str(tmp_path / "edited" / "bin" / "python"))
    (package,) = sides.packages
    assert (package.name, package.baseline) == ("peft", peft.__version__)
    assert package.candidate is not None
    assert package.candidate.startswith(f"{peft.__version__} changed (")
    assert environments(sys.executable, sys.executable).packages == []


def refusal(folder: Path, b: str, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert main(["ab", str(folder / "s.yaml"), "--a", sys.executable, "--b", b, *more]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


def test_a_python_that_is_not_there_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert "no/python cannot be run" in refusal(folder, "no/python", capsys)


def test_a_program_that_is_no_python_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert "is not a working Python" in refusal(folder, "/bin/true", capsys)


def test_a_python_without_qbench_is_told_what_to_install(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    venv.EnvBuilder(with_pip=False, symlinks=True).create(tmp_path / "bare")
    python = str(tmp_path / "bare" / "bin" / "python")
    monkeypatch.chdir(tmp_path)  # Not where the checkout itself would be imported.
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setitem(os.environ, "PYTHONNOUSERSITE", "1")
    # The first interpreter needs no packages to be asked for its own.
    monkeypatch.setattr(sys, "executable", python)
    line = refusal(folder, python, capsys)
    assert f"cannot import qbench (No module named 'qbench'); install it there: {python} -m pip" in line


def test_repeats_below_one_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert "--repeats: given 0" in refusal(folder, sys.executable, capsys, "--repeats", "0")
