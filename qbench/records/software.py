"""Which code a record speaks for: versions of the libraries and a fingerprint of qbench itself."""

from __future__ import annotations

import functools
import hashlib
import platform
import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from qbench.records.installed import EXECUTED, fingerprints
from qbench.records.parts import Environment
from qbench.version import __version__

_CODE_THAT_MOVES_NUMBERS = (
    *("catalog", "scenario", "step", "memory", "planner", "measure", "nullgpu", "records"),
    *("units.py", "quick_imports.py", "runs/plans.py"),
)
"""Folders and files of qbench."""

_SUFFIXES = (".py", ".csv", ".jsonl", ".c", ".h", ".inc")


@functools.cache
def library_versions() -> dict[str, str | None]:
    """Return the installed version of each library by its name, None where it is not installed."""
    return {name: _version(name) for name in EXECUTED}


def _version(name: str) -> str | None:
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return None
    # Distribution.metadata parses the description, too, which takes longer than all else here.
    stated = re.search(r"^Version: *(\S+)$", found.read_text("METADATA") or "", re.MULTILINE)
    return stated.group(1) if stated else found.version


@functools.cache
def code_id(parts: tuple[str, ...] = _CODE_THAT_MOVES_NUMBERS) -> str:
    """Return twelve hexadecimal digits of the source that makes numbers: equal code, equal digits.

    `parts` are folders and files of qbench; by default all that any plan or measurement goes through.
    """
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for name in parts:
        place = package / name
        files = place.rglob("*") if place.is_dir() else (place,)
        for path in sorted(file for file in files if file.suffix in _SUFFIXES):
            digest.update(str(path.relative_to(package)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def software() -> Environment:
    """Return the part of a record's environment that needs no device: versions and code."""
    return {
        "qbench": __version__,
        "code_id": code_id(),
        "versions": dict(library_versions()),
        "fingerprints": dict(fingerprints()),
        "python": platform.python_version(),
    }
