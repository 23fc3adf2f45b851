"""Files and folders on disk: written whole or not at all, and where those of this user are."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from qbench.errors import RecordError


def cache_folder() -> Path:
    """Return the folder of what can be made again: QBENCH_CACHE_DIR, else the user's."""
    return Path(os.environ.get("QBENCH_CACHE_DIR") or _user_folder("user_cache_dir"))


def config_folder() -> Path:
    """Return the folder of what belongs to this machine: QBENCH_CONFIG_DIR, else the user's."""
    return Path(os.environ.get("QBENCH_CONFIG_DIR") or _user_folder("user_config_dir"))


def machine_file(what: str, device: str, machine: str, ending: str = "") -> Path:
    """Return the file for what is known of a device on this machine, by the name of its card or processor."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", machine).strip("-").lower() or "unknown"
    return config_folder() / f"{what}-{device}-{name}{ending}.json"


def _user_folder(kind: str) -> str:
    import platformdirs

    return str(getattr(platformdirs, kind)("qbench", appauthor=False))


@contextlib.contextmanager
def replaced(file: Path, advice: str = "choose another file") -> Iterator[Path]:
    """Yield a temporary file that takes the place of `file` in one step when the block ends well.

    The folder is made. The temporary file keeps the ending, which some writers look at. A symbolic link in
    place of `file` is replaced, not followed. Raises RecordError, with `advice` as its end, when the disk
    refuses; `file` is then as it was.
    """
    part = file.with_name(f".{os.urandom(4).hex()}-{file.name}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, file)
    except OSError as error:
        raise RecordError(f"{file}: cannot be written: {error.strerror}; {advice}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(file: Path, wait_s: float = 60) -> Iterator[None]:
    """Hold a file that this process reads, changes and replaces, so that no other does meanwhile.

    The lock is in the cache folder, since one beside the file would be committed with it; without a cache
    folder there is no lock. Raises RecordError when another process does not release it.
    """
    from filelock import FileLock, Timeout  # Most commands change no file that others change.

    name = hashlib.sha256(str(file.resolve()).encode(errors="replace")).hexdigest()[:24]
    lock = FileLock(cache_folder() / "locks" / f"{name}.lock")
    try:
        with contextlib.suppress(OSError):
            (cache_folder() / "locks").mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=wait_s)
    except Timeout:
        raise RecordError(f"{file}: another process is changing it; wait for it and try again") from None
    try:
        yield
    finally:
        lock.release()


def write_whole(file: Path, content: bytes | str, advice: str = "choose another file") -> None:
    """Write a file as `replaced` does, on the disk when this returns; text becomes UTF-8 as it is."""
    data = content.encode("utf-8", errors="replace") if isinstance(content, str) else content
    with replaced(file, advice) as part, part.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
