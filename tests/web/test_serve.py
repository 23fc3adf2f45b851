from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qbench.cli.main import main


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(sys.modules, "dash", None)
    assert main(["serve"]) == 2
    said = "qbench: the planner page needs dash; install it: pip install 'qbench[web]'\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("port", ["-1", "65536", "x"])
def test_a_port_that_is_none_is_refused(port: str, capsys: pytest.CaptureFixture[str]):
    assert main(["serve", "--port", port]) == 2
    assert "port" in capsys.readouterr().err


def test_a_run_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["serve", str(tmp_path / "nowhere"), "--no-open"]) == 2
    assert "nowhere" in capsys.readouterr().err
