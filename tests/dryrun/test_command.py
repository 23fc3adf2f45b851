"""The Python behind a command, however the command is written."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from qbench.dryrun.command import _pythons, environment_of
from qbench.errors import QbenchError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a space in its name and a Python in it."""
    made = tmp_path / "my env" / "bin"
    made.mkdir(parents=True)
    (made / "python3").symlink_to(sys.executable)
    return made


def script(file: Path, text: str) -> str:
    file.write_text(text)
    file.chmod(0o755)
    return str(file)


def python_of(command: list[str], folder: Path) -> str | None:
    return next(_pythons(command, f"{folder}:/usr/bin:/bin"), None)


def test_an_interpreter_is_itself(folder: Path) -> None:
    assert python_of([str(folder / "python3"), "train.py"], folder) == str(folder / "python3")
    assert python_of(["python3", "train.py"], folder) == str(folder / "python3")
    assert python_of(["env", "A=1", "python3", "train.py"], folder) == str(folder / "python3")


@pytest.mark.parametrize(
    "head",
    [
        "#!/usr/bin/env python3\n",
        "#!/bin/sh\n'''exec' \"{folder}/python3\" \"$0\" \"$@\"\n' '''\n",
    ],
)
def test_a_console_script_has_the_python_of_its_first_lines(folder: Path, head: str) -> None:
    command = script(folder / "accelerate", head.format(folder=folder) + "import sys\n")
    assert python_of([command, "launch", "train.py"], folder) == str(folder / "python3")
    assert python_of(["accelerate", "launch", "train.py"], folder) == str(folder / "python3")


def test_a_shell_script_has_the_python_that_it_calls(folder: Path) -> None:
    script(folder / "torchrun", "#!/usr/bin/env python3\n")
    text = "#!/bin/bash\nset -e\nexport A=1\ntorchrun --nproc-per-node 2 \\\n  train.py\n"
    file = script(folder / "train me.sh", text)
    assert python_of(["bash", file], folder) == str(folder / "python3")
    assert python_of([file], folder) == str(folder / "python3")
    assert python_of(["bash", "-c", "cd x && python3 train.py"], folder) == str(folder / "python3")


def test_what_cannot_be_run_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(QbenchError, match="nowhere: no such command"):
        environment_of(["nowhere"], None, {"PATH": str(tmp_path)})
    true = str(shutil.which("true"))
    with pytest.raises(QbenchError, match=r"cannot find the Python of .*true; name it with --python"):
        environment_of([true], None, {"PATH": str(tmp_path)})
    with pytest.raises(QbenchError, match="--python: no-python cannot be run"):
        environment_of([true], "no-python", {"PATH": str(tmp_path)})


def test_a_torch_without_cuda_is_refused() -> None:
    from qbench.measure.environment import torch_has_cuda

    if torch_has_cuda():
        assert environment_of([sys.executable], None).python == sys.executable
        return
    with pytest.raises(QbenchError, match="needs a CUDA build of torch"):
        environment_of([sys.executable], None)
