"""How another Python is started: with its own libraries, and none of the folder that it is started in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

SAFE_PATH = "PYTHONSAFEPATH"
"""Keeps the working folder out of the path of a Python from 3.11 on."""

OWN_PATH = "import sys; sys.path[:1] = filter(None, sys.path[:1]); "
"""Takes the working folder, which comes first after `-c`, out of the path; before 3.11 no option does."""

_WITH_FOLDERS = """
import sysconfig
standard = sysconfig.get_path("stdlib")
own = [each for each in sys.path if each.startswith(standard) and not each.endswith("-packages")]
folders = sys.argv.pop(1).split("\\n")
sys.path[:] = [*own, *filter(None, folders), *(each for each in sys.path if each not in own)]
"""
"""A checkout comes before what is installed, and after Python's own library: a file statistics.py of it is
not to be taken for that of Python."""

_RUN_MODULE = """
del sys.argv[0]
import runpy
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def module_command(
    python: str, module: str, arguments: Sequence[str] = (), folders: Sequence[Path] = ()
) -> list[str]:
    """Return the command that runs a module as `python -m` does, but imports nothing from the working folder.

    `folders` come before the libraries that are installed.
    """
    return [*code_command(python, _RUN_MODULE, folders), module, *arguments]


def code_command(python: str, code: str, folders: Sequence[Path] = ()) -> list[str]:
    """Return the command that runs code with the same path."""
    return [python, "-c", f"{OWN_PATH}{_WITH_FOLDERS}{code}", "\n".join(map(str, folders))]


@contextlib.contextmanager
def safe_path() -> Iterator[None]:
    """Let every Python that is started meanwhile, by multiprocessing for one, ignore the working folder."""
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = before
