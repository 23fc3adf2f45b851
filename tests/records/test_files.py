"""Files are written whole or not at all, and the user's folders are where the system has them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from qbench.errors import RecordError
from qbench.records.files import cache_folder, config_folder, replaced, write_whole


def test_a_file_is_replaced_and_its_folder_made(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.txt"
    write_whole(file, "Grüße\r\n\udcff")
    assert file.read_bytes() == "Grüße\r\n?".encode()
    write_whole(file, b"other")
    assert file.read_bytes() == b"other"
    assert [each.name for each in file.parent.iterdir()] == ["a.txt"]


def test_a_file_has_the_rights_that_any_new_file_has(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_whole(tmp_path / "whole", "")
    plain, whole = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "whole"))
    assert plain == whole


def test_a_disk_that_fills_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordError) as refusal:
        write_whole(file, "new", "make room")
    assert str(refusal.value) == f"{file}: cannot be written: No space left on device; make room"
    assert [each.read_text() for each in tmp_path.iterdir()] == ["old"]


def test_an_error_of_the_writer_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("old")

    def fail(part: Path) -> None:
        assert part.suffix == ".csv"
        part.write_text("half")
        raise ValueError("no number")

    with pytest.raises(ValueError, match="no number"), replaced(file) as part:
        fail(part)
    assert [each.read_text() for each in tmp_path.iterdir()] == ["old"]


def test_a_link_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write_whole(link, "new")
    assert (target.read_text(), link.read_text(), link.is_symlink()) == ("old", "new", False)


def test_the_users_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QBENCH_CACHE_DIR", "QBENCH_CONFIG_DIR"):
        monkeypatch.delenv(name)
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    if os.name == "posix" and os.uname().sysname == "Linux":
        monkeypatch.setenv("HOME", str(tmp_path))
        assert cache_folder() == tmp_path / ".cache" / "qbench"
        assert config_folder() == tmp_path / ".config" / "qbench"
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
        assert cache_folder() == tmp_path / "cache" / "qbench"
        assert config_folder() == tmp_path / "config" / "qbench"
    monkeypatch.setenv("QBENCH_CACHE_DIR", str(tmp_path / "mine"))
    monkeypatch.setenv("QBENCH_CONFIG_DIR", str(tmp_path / "own"))
    assert (cache_folder(), config_folder()) == (tmp_path / "mine", tmp_path / "own")
