"""`qbench dryrun` and `qbench ab -- COMMAND` from the command line to the exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from qbench.cli.main import main
from qbench.records.store import read_records

STEP = """
import sys, torch
layer = torch.nn.Linear(1024, 1024, bias=False).cuda()
optimizer = torch.optim.SGD(layer.parameters())
for _ in range(9):
    layer(torch.ones(int(sys.argv[1]), 1024, device="cuda")).sum().backward()
    optimizer.step()
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing argument"),
        (["--gpus", "0", "--", "true"], "--gpus: given 0"),
        (["--gpus", "9", "--", "true"], "--gpus: given 9; allowed: up to 8, and more with --rank-only"),
        (["--steps", "0", "--", "true"], "--steps: given 0"),
        (["--timeout", "0", "--", "true"], "--timeout: given 0"),
        (["--gpu", "RTX 9999", "--", "true"], "not in the catalog"),
        (
            ["no-such.py"],
            "no-such.py: no such command; give one that runs in this shell, for example -- python",
        ),
        (["--", "no-such-command"], "no-such-command: no such command"),
    ],
)
def test_bad_usage(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dryrun", "--out", str(tmp_path / "out"), *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.fixture
def program(tmp_path: Path) -> str:
    file = tmp_path / "train.py"
    file.write_text(STEP)
    return str(file)


@pytest.mark.nullgpu
def test_exit_codes_and_json(tmp_path: Path, program: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"

    def ended(*words: str) -> int:
        return main(["dryrun", "--gpu", "T4", "--out", str(out), "--json", "--", sys.executable, *words])

    assert ended(program, "8") == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "dryrun"
    assert ended(program, "9000000") == 1
    assert ended("-c", "raise SystemExit(4)") == 3
    assert ended("-I", program, "8") == 2
    assert "leave out -I, -E and -S" in capsys.readouterr().err
    assert [record.outcome for record in read_records(out)] == ["ok", "oom", "error"]


@pytest.mark.nullgpu
def test_a_program_in_two_environments(
    tmp_path: Path, program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert main(["ab", "--a", sys.executable, "--b", sys.executable, "--out", out, "--", program, "8"]) == 0
    text = capsys.readouterr().out
    assert "python train.py 8 on H200 SXM (dry run on a null GPU) fits" in text
    assert "Memory: equal in the one point." in text
