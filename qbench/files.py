"""Files that a person or another program names: opened only where reading them comes to an end."""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

from qbench.units import MIB, format_bytes

MOST_BYTES = 256 * MIB
"""Of a file that is read whole."""


def open_file(file: Path | str) -> BinaryIO:
    """Return a regular file opened for reading.

    Raises OSError, whose strerror says what it is, for all else: a pipe may never be written to, and a
    device may have no end.
    """
    try:
        # A pipe would wait for its writer here.
        handle = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # A name with a NUL in it.
        raise OSError(errno.EINVAL, str(error), str(file)) from error
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(file))


def read_bytes(file: Path | str, most: int = MOST_BYTES) -> bytes:
    """Return what a regular file holds. Raises OSError as `open_file` does, and where it is larger."""
    with open_file(file) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it is larger than {format_bytes(most)}", str(file))
    return content


def content_digest(file: Path | str) -> str:
    """Return twelve hexadecimal digits of a file's content, empty when it cannot be read."""
    try:
        known = os.stat(file)
        return _content_digest(str(file), known.st_size, known.st_mtime_ns)
    except (OSError, ValueError):
        return ""


@functools.lru_cache(maxsize=256)
def _content_digest(file: str, size: int, changed_ns: int) -> str:
    """Return the digest of a file as it is at that size and time: a GGUF takes seconds a few GiB."""
    with open_file(file) as content:
        digest = hashlib.sha256()
        while block := content.read(MIB):
            digest.update(block)
    return digest.hexdigest()[:12]


def read_text(file: Path | str, most: int = MOST_BYTES) -> str:
    """Return the UTF-8 text of a regular file. Raises OSError as `read_bytes` does, or UnicodeDecodeError."""
    return read_bytes(file, most).decode()
