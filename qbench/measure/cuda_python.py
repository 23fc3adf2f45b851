"""Which Python has the CUDA build of torch that a null GPU runs under, and this command run by it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from qbench.errors import QbenchError
from qbench.measure.environment import torch_has_cuda
from qbench.measure.interpreter import inspect
from qbench.measure.start import module_command

VARIABLE = "QBENCH_CUDA_PYTHON"
"""Names that Python where a command does not."""
FOLDER = ".venv-cuda"
"""Where `make .venv-cuda` installs one."""


def cuda_python(given: str | None) -> str | None:
    """Return the Python to run under, None for this one.

    That is the one given, else that of QBENCH_CUDA_PYTHON, else this one where its torch is a CUDA build,
    else that of .venv-cuda in the working folder or the checkout. Raises QbenchError, with what to do, where
    there is none or it cannot import qbench.
    """
    named = given or os.environ.get(VARIABLE)
    if named is None:
        if torch_has_cuda():
            return None
        named = next(filter(os.path.exists, _installed()), None)
    if named is None:
        raise QbenchError(
            "--device null needs a CUDA build of torch, and this one has none; run `make .venv-cuda`, or "
            f"name its Python with --python or {VARIABLE}"
        )
    found = inspect(named).path
    return None if found == os.path.abspath(sys.executable) else found


def _installed() -> list[str]:
    roots = (Path.cwd(), Path(__file__).parents[2])
    return [str(root / FOLDER / "bin" / "python") for root in roots]


def run_there(python: str, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by a qbench command of another Python, which does not look for a further one."""
    command = module_command(python, "qbench", arguments)
    os.execve(command[0], command, {**os.environ, VARIABLE: python})
