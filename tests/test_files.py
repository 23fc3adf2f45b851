"""Files are read to their end, and what has none is refused at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qbench.files import open_file, read_bytes, read_text


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_a_file_is_read(tmp_path: Path):
    (tmp_path / "file").write_text("ö")
    assert read_text(tmp_path / "file") == "ö"
    with open_file(tmp_path / "file") as stream:
        assert stream.readline() == "ö".encode()


def test_a_pipe_without_a_writer_is_not_waited_for(pipe: Path):
    with pytest.raises(OSError, match="it is a pipe or a device, not a file"):
        read_bytes(pipe)


def test_a_device_without_an_end_is_not_read():
    with pytest.raises(OSError, match="it is a pipe or a device, not a file"):
        read_bytes("/dev/zero")


@pytest.mark.parametrize(("name", "error"), [("", IsADirectoryError), ("nowhere", FileNotFoundError)])
def test_what_is_not_there_is_told_as_open_tells_it(tmp_path: Path, name: str, error: type[OSError]):
    with pytest.raises(error):
        read_bytes(tmp_path / name)


def test_a_name_that_no_file_can_have(tmp_path: Path):
    with pytest.raises(OSError, match="null byte"):
        read_bytes(tmp_path / "a\0b")


def test_a_file_that_is_too_large(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bytes(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="it is larger than 4 B"):
        read_bytes(tmp_path / "file", 4)
