"""What is installed and shipped: version, commands, the files of the wheel, the pinned versions."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import qbench
from qbench.cli.main import _COMMANDS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    folder = tmp_path_factory.mktemp("wheel")
    (path,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(path) as opened:
        yield opened


def text_of(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def names_in(wheel: zipfile.ZipFile, folder: str) -> set[str]:
    return {name.removeprefix(folder) for name in wheel.namelist() if name.startswith(folder)}


def names_on_disk(folder: Path) -> set[str]:
    files = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return {file.as_posix() for file in files if "__pycache__" not in file.parts}


def run_module(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qbench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def described(wheel: zipfile.ZipFile) -> Message:
    """What an installer reads; the metadata of an editable installation are as old as that."""
    return message_from_bytes(wheel.read(f"qbench-{qbench.__version__}.dist-info/METADATA"))


def test_the_version_is_the_newest_of_the_changelog_and_that_of_the_citation(described: Message):
    newest = re.search(r"^## \[([\d.]+)\] - (\d{4}-\d\d-\d\d)$", text_of("CHANGELOG.md"), re.M)
    assert newest is not None
    assert described["Version"] == qbench.__version__ == newest[1]
    assert f"version: {newest[1]}\ndate-released: {newest[2]}" in text_of("CITATION.cff")
    for page in (
        "docs/check-in-ci.md",
        "examples/github/plan-only.yml",
        "examples/github/gpu-runner.yml",
        "examples/github/dry-run.yml",
    ):
        assert set(re.findall(r"qbench@v([\d.]+)", text_of(page))) == {newest[1]}


def test_the_console_script_is_the_command_line():
    (script,) = metadata.entry_points(group="console_scripts", name="qbench")
    assert script.value == "qbench.cli.main:main"


def test_python_m_qbench_shows_the_commands():
    shown = run_module("--help")
    assert shown.returncode == 0, shown.stderr
    for command in ("plan", "run", "report", "models", "gpus", "scenarios"):
        assert re.search(rf"\b{command}\b", shown.stdout), f"{command} is not in --help"


def test_an_unknown_command_ends_with_2():
    shown = run_module("plant")
    assert shown.returncode == 2
    assert "plant" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_the_wheel_holds_the_package_and_nothing_beside_it(wheel: zipfile.ZipFile):
    assert names_in(wheel, "qbench/") >= names_on_disk(ROOT / "qbench")
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"qbench", f"qbench-{qbench.__version__}.dist-info"}


def test_the_wheel_holds_the_scenarios_and_the_data(wheel: zipfile.ZipFile):
    scenarios = names_in(wheel, "qbench/_scenarios/")
    assert scenarios == names_on_disk(ROOT / "scenarios")
    assert "demo.yaml" in scenarios
    assert names_in(wheel, "qbench/catalog/data/")
    assert names_in(wheel, "qbench/report/templates/")
    assert "qbench/py.typed" in wheel.namelist()
    assert f"qbench-{qbench.__version__}.dist-info/licenses/LICENSE" in wheel.namelist()


def pins() -> dict[str, Requirement]:
    """Return the pins of constraints.txt that hold for this Python, by canonical name."""
    lines = text_of("constraints.txt").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    held = [
        requirement for requirement in requirements if not requirement.marker or requirement.marker.evaluate()
    ]
    by_name = {canonicalize_name(requirement.name): requirement for requirement in held}
    assert len(by_name) == len(held), "a package is pinned twice"
    return by_name


def test_each_dependency_is_pinned_within_its_bounds(described: Message):
    pinned = pins()
    for text in described.get_all("Requires-Dist", []):
        requirement = Requirement(text)
        version = str(pinned[canonicalize_name(requirement.name)].specifier).removeprefix("==")
        assert requirement.specifier.contains(version), f"{version} is outside {text}"


def test_pre_commit_formats_with_the_pinned_ruff():
    revision = re.search(r"ruff-pre-commit\s+rev: v([\d.]+)", text_of(".pre-commit-config.yaml"))
    assert revision is not None
    assert str(pins()["ruff"].specifier) == f"=={revision.group(1)}"


def test_the_wheel_alone_lists_scenarios_and_reports_on_a_run(wheel: zipfile.ZipFile, tmp_path: Path):
    wheel.extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    for arguments, shown in (
        (["scenarios"], "demo.yaml"),
        (["report", str(ROOT / "reports" / "demo"), "--out", "report"], "QLoRA"),
    ):
        done = subprocess.run(
            [sys.executable, "-P" if sys.version_info >= (3, 11) else "-s", "-m", "qbench", *arguments],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            cwd=tmp_path,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        assert shown in done.stdout
    assert (tmp_path / "report" / "report.html").is_file()


def test_the_hook_runs_a_command_and_watches_what_may_cost_memory():
    (hook,) = yaml.safe_load(text_of(".pre-commit-hooks.yaml"))
    qbench_word, command = hook["entry"].split()
    assert qbench_word == "qbench"
    assert command in _COMMANDS
    watched = (
        "scenarios/ci.yaml",
        "uv.lock",
        "requirements-gpu.txt",
        "pyproject.toml",
        "baselines/plan.jsonl",
    )
    assert all(re.search(hook["files"], name) for name in watched)
    assert not re.search(hook["files"], "train.py")


def test_the_container_is_built_of_files_that_are_there():
    lines = text_of("examples/container/Dockerfile").splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    ignored = text_of("examples/container/Dockerfile.dockerignore").splitlines()
    assert {"qbench", "pyproject.toml", "scenarios"} <= set(copied)
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert {f"!{name}" for name in copied} <= set(ignored)
