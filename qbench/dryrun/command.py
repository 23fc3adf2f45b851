"""Which Python a command runs: its torch and its packages are what a dry run is of."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qbench.errors import QbenchError

INSPECT_TIMEOUT_S = 120
SHEBANG_BYTES = 4096
SCRIPT_BYTES = 1 << 20
_PYTHON = re.compile(r"(python|pypy)[\d.]*")
_SHELLS = ("sh", "bash", "dash", "zsh", "ksh")

_INSPECTION = """
import importlib.util, json, os, re, sys
spec = importlib.util.find_spec("torch")
folder = os.path.dirname(spec.origin) if spec is not None and spec.origin else None
cuda = None
if folder:
    text = open(os.path.join(folder, "version.py")).read()
    found = re.search(r"^cuda\\b[^=\\n]*=\\s*['\\"]([^'\\"]+)", text, re.MULTILINE)
    cuda = found.group(1) if found else None
print(json.dumps({"torch": folder, "cuda": cuda}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The Python that a command runs."""

    python: str
    """Executable, absolute."""
    site: Path
    """Folder that its torch is installed in."""


def environment_of(
    command: Sequence[str], given: str | None, variables: Mapping[str, str] = os.environ
) -> Environment:
    """Return the Python that a command runs, or the one given.

    Raises QbenchError, which says what to do, where the command does not exist, its Python cannot be found,
    or that Python has no CUDA build of torch.
    """
    path = variables.get("PATH", os.defpath)
    if shutil.which(command[0], path=path) is None:
        example = f", for example -- python {command[0]}" if command[0].endswith(".py") else ", after --"
        raise QbenchError(f"{command[0]}: no such command; give one that runs in this shell{example}")
    python = _on_path(given, path) if given else next(_pythons(command, path), None) or _first(path)
    if python is None:
        raise QbenchError(f"cannot find the Python of {command[0]}; name it with --python")
    return _inspected(python, variables)


def _on_path(name: str, path: str) -> str:
    found = shutil.which(name, path=path)
    if found is None:
        raise QbenchError(
            f"--python: {name} cannot be run; give the path of a Python, for example .venv/bin/python"
        )
    return os.path.abspath(found)


def _first(path: str) -> str | None:
    found = shutil.which("python", path=path) or shutil.which("python3", path=path)
    return None if found is None else os.path.abspath(found)


def _pythons(words: Sequence[str], path: str, depth: int = 0) -> Iterator[str]:
    """Yield the Pythons that words of a command lead to: interpreters, scripts with one, shell scripts."""
    for number, word in enumerate(words):
        file = shutil.which(word, path=path) if number == 0 or "/" not in word else _readable(word)
        if file is None:
            continue
        name = os.path.basename(file)
        if _PYTHON.fullmatch(name):
            yield os.path.abspath(file)
        elif name not in _SHELLS:
            yield from _of_script(file, path, depth)
        elif depth == 0:
            yield from _of_shell(words[number + 1 :], path)
            return


def _readable(word: str) -> str | None:
    return word if os.path.isfile(word) and os.access(word, os.R_OK) else None


def _of_script(file: str, path: str, depth: int) -> Iterator[str]:
    """Yield the Python that the first lines of a script name, as pip, conda or a person writes them."""
    try:
        with open(file, "rb") as stream:
            head = stream.read(SHEBANG_BYTES)
    except OSError:
        return
    if not head.startswith(b"#!"):
        return
    lines = head.decode(errors="replace").splitlines()
    words = lines[0][2:].split()
    if words and os.path.basename(words[0]) == "env":
        words = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
    if words and os.path.basename(words[0]) in _SHELLS:
        # pip writes long paths of an interpreter behind `exec`: '''exec' "/long path/python" "$0" "$@"
        found = re.match(r"'''exec' (\"[^\"]+\"|\S+)", lines[1]) if len(lines) > 1 else None
        if found is not None:
            words = [found[1].strip('"')]
        elif depth == 0:
            yield from _of_shell([file], path)
            return
    if words and _PYTHON.fullmatch(os.path.basename(words[0])):
        python = shutil.which(words[0], path=path)
        if python is not None:
            yield os.path.abspath(python)


def _of_shell(words: Sequence[str], path: str) -> Iterator[str]:
    """Yield the Pythons that the text of a shell's command or script calls."""
    text = " ".join(words[1:2]) if words[:1] == ["-c"] else ""
    script = next((word for word in words if not word.startswith("-") and os.path.isfile(word)), None)
    if not text and script is not None:
        with open(script, "rb") as stream:
            text = stream.read(SCRIPT_BYTES).decode(errors="replace")
    for line in text.replace("\\\n", " ").splitlines():
        try:
            parts = shlex.split(line, comments=True)
        except ValueError:
            continue
        for number in range(len(parts)):
            yield from _pythons(parts[number : number + 1], path, depth=1)


def _inspected(python: str, variables: Mapping[str, str]) -> Environment:
    try:
        done = subprocess.run(
            [python, "-c", _INSPECTION],
            capture_output=True,
            timeout=INSPECT_TIMEOUT_S,
            check=False,
            env=dict(variables),
        )
        facts = json.loads(done.stdout.splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        raise QbenchError(f"{python} is not a working Python; name another with --python") from None
    if facts["torch"] is None:
        raise QbenchError(f"the command's Python, {python}, has no torch; name another with --python")
    if facts["cuda"] is None:
        raise QbenchError(
            f"a dry run needs a CUDA build of torch, which {python} does not have; install one there, or "
            "name another Python with --python"
        )
    return Environment(python=python, site=Path(facts["torch"]).parent)
