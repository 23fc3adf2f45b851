"""The GitHub Action: its steps are run in bash as the YAML says, with installation left out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import write_tiny_model

ROOT = Path(__file__).parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
SCENARIO = """
name: ci
question: Does it still train?
base: {model: ./model, precision: nf4-dq, train: {seq_len: 16}}
measure: {warmup_steps: 0, steps: 1, repeats: 1}
"""

DRY = """
import torch
model = torch.nn.Linear(1024, 1024).cuda()
optimizer = torch.optim.SGD(model.parameters())
model(torch.ones(1, model.in_features, device="cuda")).sum().backward()
optimizer.step()
"""


class Job:
    """A folder in which steps run one after another, as GitHub would run them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.summary = folder / "summary.md"
        self.values: dict[str, str] = {"github.action_path": str(ROOT)}

    def run(self, **inputs: str) -> list[subprocess.CompletedProcess[str]]:
        """Run the steps until one fails; return what became of each."""
        defaults = {name: spec.get("default", "") for name, spec in ACTION["inputs"].items()}
        given = defaults | {"install": "false"} | {name.replace("_", "-"): v for name, v in inputs.items()}
        self.values |= {f"inputs.{name}": value for name, value in given.items()}
        ended: list[subprocess.CompletedProcess[str]] = []
        for step in ACTION["runs"]["steps"]:
            if self._wanted(step) and not (ended and ended[-1].returncode):
                ended.append(self._step(step))
        return ended

    def _wanted(self, step: dict[str, Any]) -> bool:
        """Return what a step's condition says; those of the action compare inputs with texts."""
        for term in step.get("if", "").split(" && "):
            name, operator, value = (
                re.fullmatch(r"(\S+) (==|!=) '(.*)'", term).groups() if term else ("", "!=", "x")
            )
            if (self.values.get(name, "") == value) != (operator == "=="):
                return False
        return True

    def _step(self, step: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        outputs = self.folder / "outputs"
        outputs.write_text("")
        files = {
            "GITHUB_OUTPUT": str(outputs),
            "GITHUB_STEP_SUMMARY": str(self.summary),
            "GITHUB_WORKSPACE": str(self.folder),
        }
        env = {name: self.filled(text) for name, text in step["env"].items()}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        # https://docs.github.com/actions/reference/workflows-and-actions/workflow-syntax: shell: bash
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(
            shell,
            cwd=self.folder,
            env=os.environ | files | env | {"PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        for line in outputs.read_text().splitlines():
            name, _, value = line.partition("=")
            self.values[f"steps.{step['id']}.outputs.{name}"] = value
        return done

    def filled(self, text: str) -> str:
        return re.sub(r"\$\{\{ (.+?) \}\}", lambda match: self.values[match.group(1)], text)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    write_tiny_model(tmp_path / "model", "meta-llama/Llama-3.2-1B")
    (tmp_path / "ci.yaml").write_text(SCENARIO, encoding="utf-8")
    return Job(tmp_path)


def test_a_plan_is_accepted_then_held_and_then_fails(job: Job):
    (planned,) = job.run(scenario="ci.yaml")
    assert planned.returncode == 0, planned.stderr
    result = job.folder / job.filled(ACTION["outputs"]["result"]["value"])
    document = json.loads(result.read_text())
    (record,) = document["records"]
    base = job.folder / "base.jsonl"
    base.write_text(json.dumps(record) + "\n")
    planned, checked = job.run(scenario="ci.yaml", baseline="base.jsonl")
    assert checked.returncode == 0, checked.stderr
    assert job.summary.read_text().startswith("### qbench check: No regression")

    record["metrics"]["peak_allocated_bytes"] //= 2
    base.write_text(json.dumps(record) + "\n")
    planned, checked = job.run(scenario="ci.yaml", baseline="base.jsonl", summary="false")
    assert checked.returncode == 1
    assert "::error file=base.jsonl,line=1,title=qbench%3A model@" in checked.stdout
    assert "Failed" not in job.summary.read_text()
    for output in ("junit", "sarif"):
        assert (job.folder / job.filled(ACTION["outputs"][output]["value"])).stat().st_size > 0
    tolerances = "peak_allocated_bytes=200%\n\n"
    planned, checked = job.run(
        scenario="ci.yaml", baseline="base.jsonl", tolerances=tolerances, strict="true"
    )
    assert checked.returncode == 0, checked.stdout


def test_an_unknown_mode_is_told(job: Job):
    (planned,) = job.run(scenario="ci.yaml", mode="measure")
    assert planned.returncode == 2
    assert planned.stdout == "::error title=qbench::mode is measure; allowed: plan, run, dryrun\n"


@pytest.mark.nullgpu
def test_a_dry_run_is_held_against_its_baseline(job: Job):
    (job.folder / "train.py").write_text(DRY)
    inputs = {"mode": "dryrun", "gpu": "RTX 4090", "dryrun_options": "--steps=1\n"}
    command = f"'{sys.executable}' train.py"
    (ran,) = job.run(command=command, **inputs)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (record,) = map(json.loads, (job.folder / "qbench-results/dryrun/records.jsonl").read_text().splitlines())
    (job.folder / "base.jsonl").write_text(json.dumps(record) + "\n")
    (job.folder / "train.py").write_text(DRY.replace("1024", "2048"))
    ran, checked = job.run(command=command, baseline="base.jsonl", **inputs)
    assert (ran.returncode, checked.returncode) == (0, 1), checked.stdout + checked.stderr


def test_points_that_could_be_planned_are_checked_before_the_others_fail(job: Job):
    matrix = "matrix: {lora.target_modules: [[q_proj], [no_such_proj]]}\n"
    (job.folder / "ci.yaml").write_text(SCENARIO + matrix, encoding="utf-8")
    planned, failed = job.run(scenario="ci.yaml")
    assert planned.returncode == 0, planned.stderr
    assert failed.returncode == 2
    assert failed.stdout == "::error title=qbench::qbench plan ended with exit code 2; its output says why\n"
    result = job.folder / job.filled(ACTION["outputs"]["result"]["value"])
    base = job.folder / "base.jsonl"
    (good,) = [each for each in json.loads(result.read_text())["records"] if each["outcome"] == "ok"]
    good["metrics"]["peak_allocated_bytes"] //= 2
    base.write_text(json.dumps(good) + "\n")
    _, checked = job.run(scenario="ci.yaml", baseline="base.jsonl")
    assert checked.returncode == 1
    assert "::error file=base.jsonl,line=1,title=qbench%3A model@" in checked.stdout


def test_no_value_of_an_input_stands_in_a_script():
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step.get("run", "")


@pytest.mark.parametrize("name", ["plan-only", "gpu-runner", "dry-run"])
def test_examples_name_inputs_that_the_action_has(name: str):
    text = (ROOT / "examples" / "github" / f"{name}.yml").read_text(encoding="utf-8")
    (steps,) = [job["steps"] for job in yaml.safe_load(text)["jobs"].values()]
    (used,) = [step for step in steps if "/qbench@" in step.get("uses", "")]
    assert set(used["with"]) <= set(ACTION["inputs"])
    given = used["with"]
    assert given["command" if given["mode"] == "dryrun" else "scenario"]
