"""What a record says of its machine and of the files that it was made of."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from qbench.measure.environment import environment, torch_has_cuda


def test_the_environment_is_json_and_names_machine_code_and_versions():
    env = environment("cpu")
    assert json.loads(json.dumps(env)) == env
    assert env["device"] == "cpu"
    assert env["device_name"]
    assert env["cpu_count"] >= 1
    assert env["host_memory_bytes"] > 1 << 30
    assert env["versions"]["torch"]
    assert len(env["code_id"]) == 12


def test_settings_that_move_numbers_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    settings = environment("cpu")["settings"]
    assert settings["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert "CUBLAS_WORKSPACE_CONFIG" not in settings


@pytest.mark.parametrize(
    ("version_file", "has_cuda"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n", False),
        ("__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\nhip = None\n", True),
        ("cuda = None\n", False),
        ("cuda = '12.1'\n", True),
        ("git_version = 'abc'\n", True),
        (None, True),
    ],
)
def test_whether_torch_was_built_for_cuda_is_read_from_its_version_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version_file: str | None, has_cuda: bool
):
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('torch was imported')")
    if version_file is not None:
        (package / "version.py").write_text(version_file)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert torch_has_cuda() == has_cuda


def test_the_installed_torch_is_judged_as_it_judges_itself():
    import torch

    assert torch_has_cuda() == (torch.version.cuda is not None)
