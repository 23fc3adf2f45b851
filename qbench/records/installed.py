"""Whether the libraries that a trace executes are as they were released, by their files.

A version number does not say so: an editable install, a copy earlier on the path, or a file edited in
site-packages keep it. Files are compared with the RECORD of the installed distribution (PEP 376, PEP 627).
"""

from __future__ import annotations

import base64
import csv
import functools
import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

from qbench.errors import RecordError
from qbench.files import open_file, read_text
from qbench.records.files import cache_folder, replaced
from qbench.units import MIB

EXECUTED = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
"""Libraries whose code a trace executes."""

_META = ("_decomp", "_library", "_prims", "_prims_common", "_refs", "_subclasses")
_TORCH = frozenset((*_META, "amp", "autograd", "backends", "cuda", "lib", "nn", "optim", "utils"))
"""Folders of torch that a training step on meta tensors executes; the others hold 2,000 files more."""

_COMPILED = (".so", ".pyd", ".dll", ".dylib")
_SUFFIXES = (".py", *_COMPILED)


class _File(NamedTuple):
    """A file of a package, and what the system says of it."""

    name: str
    """Path from the package's folder, with slashes."""
    size: int
    mtime_ns: int
    ctime_ns: int
    """Time of the last change, which no tool sets back."""


@functools.cache
def fingerprints() -> dict[str, str | None]:
    """Return for each library twelve hexadecimal digits of what is not as released; None where all is.

    Equal changes have equal digits, wherever they are installed. A library that is not installed is left out.
    """
    return {name: fingerprint(name, folder) for name in EXECUTED if (folder := package_folder(name))}


def package_folder(name: str) -> Path | None:
    """Return the folder that `import name` would execute, without importing it; None if there is none."""
    module = sys.modules.get(name)
    with suppress(ImportError, ValueError, AttributeError):
        spec = module.__spec__ if module is not None else importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None and os.path.isfile(spec.origin):
            return Path(spec.origin).parent
    return None


def fingerprint(name: str, folder: Path) -> str | None:
    """Return what of a package in a folder is not as its release has it, as `fingerprints` does.

    The answer is kept in the cache folder for as long as no file of the package changes.
    """
    files = sorted(_files(folder, _TORCH if name == "torch" else None))
    record = _record_file(name)
    state = _digest([*files, str(record), _times(record)])
    kept = cache_folder() / "packages" / f"{name}-{_digest([str(folder)])}.json"
    with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        known = json.loads(read_text(kept))
        if known["state"] == state and isinstance(known["fingerprint"], str | None):
            found: str | None = known["fingerprint"]
            return found
    found = _changes(folder, files, _released(name, record), _times(record)[0])
    with suppress(OSError, RecordError), replaced(kept) as part:
        part.write_text(json.dumps({"state": state, "fingerprint": found}))
    return found


def _files(folder: Path | str, only: frozenset[str] | None, above: str = "") -> Iterator[_File]:
    """Yield the files of a package that Python executes; `only` names the folders of it that count."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if entry.is_dir():
                if name != "__pycache__" and (only is None or name in only):
                    yield from _files(entry.path, None, f"{above}{name}/")
            elif name.endswith(_SUFFIXES):
                with suppress(OSError):
                    found = entry.stat()
                    yield _File(above + name, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _record_file(name: str) -> Path | None:
    try:
        found: Distribution = distribution(name)
    except PackageNotFoundError:
        return None
    folder = getattr(found, "_path", None)  # Distribution.files would parse all of RECORD each time.
    return folder / "RECORD" if isinstance(folder, Path) else None


def _times(file: Path | None) -> tuple[int, int]:
    with suppress(OSError):
        if file is not None:
            found = file.stat()
            return found.st_mtime_ns, found.st_size
    return 0, 0


def _released(name: str, record: Path | None) -> Mapping[str, tuple[str, str]]:
    """Return the hash and size of each file of a package's release, by its path in the package."""
    try:
        rows = list(csv.reader(read_text(record).splitlines())) if record is not None else []
    except (OSError, ValueError, csv.Error):
        return {}
    return {row[0].removeprefix(f"{name}/"): (row[1], row[2]) for row in rows if len(row) == 3}


def _changes(
    folder: Path, files: list[_File], released: Mapping[str, tuple[str, str]], installed_ns: int
) -> str | None:
    """Return digits of the files that differ from those released, are new or are gone; None without any."""
    there = {file.name for file in files}
    folders = {name.rpartition("/")[0] for name in there}
    gone = sorted(
        name
        for name in released
        if name.endswith(_SUFFIXES) and name not in there and name.rpartition("/")[0] in folders
    )
    changed = [
        (file.name, digest)
        for file in files
        if (digest := _new_content(folder, file, released, installed_ns))
    ]
    return _digest([changed, gone])[:12] if changed or gone else None


def _new_content(
    folder: Path, file: _File, released: Mapping[str, tuple[str, str]], installed_ns: int
) -> str | None:
    """Return the hash of a file's content, None where it is the one released."""
    wanted, size = released.get(file.name, ("", ""))
    as_installed = str(file.size) == size and file.mtime_ns <= installed_ns
    if as_installed and file.name.endswith(_COMPILED):
        return None  # Some have a gigabyte; a build makes a newer file.
    digest = hashlib.sha256()
    try:
        with open_file(folder / file.name) as stream:
            for part in iter(functools.partial(stream.read, MIB), b""):
                digest.update(part)
    except OSError:
        return "unreadable"
    found = "sha256=" + base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode()
    return None if found == wanted else found


def _digest(values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:24]
