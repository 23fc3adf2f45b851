"""Whether a library is as released is read from its files, not from its version."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qbench.records import installed
from qbench.records.installed import EXECUTED, fingerprint, fingerprints, package_folder

PROGRAM = (
    "import json, sys; from qbench.records.software import software; "
    "print(json.dumps({**software(), 'imported': [n for n in ('peft', 'torch') if n in sys.modules]}))"
)


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of peft as it is installed, and let answers be kept in a folder of the test."""
    monkeypatch.setenv("QBENCH_CACHE_DIR", str(tmp_path / "cache"))
    source = package_folder("peft")
    assert source is not None
    return Path(shutil.copytree(source, tmp_path / "path" / "peft"))


def test_installed_libraries_are_as_released() -> None:
    assert fingerprints() == dict.fromkeys(EXECUTED)


def test_a_copy_of_a_release_is_that_release(copy: Path) -> None:
    assert fingerprint("peft", copy) is None


def test_every_kind_of_edit_is_seen_and_seen_to_be_undone(copy: Path) -> None:
    file = copy / "tuners" / "lora" / "layer.py"
    text = file.read_text()
    changed = file.with_name("extra.py")
    file.write_text(text.replace("lora_A", "lora_a"))  # As long as before.
    edited = fingerprint("peft", copy)
    changed.write_text("")
    added = fingerprint("peft", copy)
    changed.unlink()
    assert fingerprint("peft", copy) == edited
    file.unlink()
    gone = fingerprint("peft", copy)
    file.write_text(text)
    assert fingerprint("peft", copy) is None
    assert len({edited, added, gone, None}) == 4


def test_an_edit_that_keeps_size_and_time_is_seen(copy: Path) -> None:
    file = copy / "mapping.py"
    before = file.stat()
    assert fingerprint("peft", copy) is None
    file.write_text(file.read_text().replace("def", "fed", 1))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert fingerprint("peft", copy) is not None


def test_equal_edits_have_equal_digits_in_any_folder(copy: Path, tmp_path: Path) -> None:
    (copy / "mapping.py").write_text("raise SystemExit\n")
    other = Path(shutil.copytree(copy, tmp_path / "elsewhere" / "peft"))
    assert fingerprint("peft", copy) == fingerprint("peft", other)


def test_a_library_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "EXECUTED", ("no_such_library",))
    assert fingerprints.__wrapped__() == {}


def test_what_counts_is_what_would_be_imported_and_nothing_is_imported(copy: Path) -> None:
    (copy / "mapping.py").write_text("raise SystemExit\n")
    env = {**os.environ, "PYTHONPATH": str(copy.parent)}
    made = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True
    )
    found = json.loads(made.stdout)
    assert found["fingerprints"] == {**dict.fromkeys(EXECUTED), "peft": fingerprint("peft", copy)}
    assert found["fingerprints"]["peft"] is not None
    assert found["imported"] == []
