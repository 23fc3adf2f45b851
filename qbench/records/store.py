"""Run folders: one writer appends whole records to `records.jsonl`; any number of readers read them."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from qbench.errors import RecordError
from qbench.files import open_file
from qbench.records.files import write_whole
from qbench.records.lines import encoded, is_whole, parsed_record, parsed_without_bulk
from qbench.records.record import Record

if TYPE_CHECKING:
    from filelock import BaseFileLock

RECORDS_FILE = "records.jsonl"
TORN_FILE = "records.jsonl.torn"
SAVED_FILE = "records.saved.jsonl"
"""Records of a file that was removed while it was written, where another has its name."""
LOCK_FILE = "records.lock"
HOLDER_FILE = "records.writer"
"""Number of the process that has the folder open for writing."""
BLOCK_BYTES = 1 << 16


class TornLine(NamedTuple):
    """The last line of a file, which a killed writer left unfinished."""

    place: str
    """File and line, for example run/records.jsonl:12."""
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRecords:
    """What a run folder or a file holds."""

    records: list[Record]
    """The records in the order in which they were appended."""
    torn: TornLine | None
    """The last line where it is torn; it is not among the records."""
    damaged: tuple[str, ...] = ()
    """Why lines are no records, one text for each; what they held is not among the records."""
    places: tuple[str, ...] = ()
    """Where each record is stored, for example run/records.jsonl:12."""


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Keep the garbage collector from walking over records again and again while more are made.

    Records hold no cycles, so it would find nothing; of 10,000 records that is a quarter of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_records(path: Path, *, bulk: bool = True) -> list[Record]:
    """Return the records of a run folder or of a .jsonl file, in the order in which they were appended.

    Without `bulk`, timelines and errors by module, which are most of a file, are None, and reading takes a
    third of the time; such records are not for writing (see `sound_line`).
    Raises RecordError, with file and line, when there is no such file or a line is not a record. A last
    line that a killed writer left torn is skipped; `read_stored` says so.
    """
    stored = read_stored(path, bulk=bulk)
    if stored.damaged:
        raise RecordError(stored.damaged[0])
    return stored.records


def each_record(path: Path) -> Iterator[Record]:
    """Yield the records that `read_records` would return, one at a time; raises RecordError as it does."""
    file = path / RECORDS_FILE if path.is_dir() else path
    for place, line in _lines(file):
        if line.endswith(b"\n") or is_whole(line):
            yield parsed_record(line, place)


@collector_paused()
def read_stored(path: Path, *, bulk: bool = True) -> StoredRecords:
    """Return the records that can be read, with a notice about a torn last line and why others cannot be.

    Raises RecordError when there is no such file.
    """
    file = path / RECORDS_FILE if path.is_dir() else path
    read = parsed_record if bulk else parsed_without_bulk
    torn = None
    records: list[Record] = []
    damaged: list[str] = []
    places: list[str] = []
    for place, line in _lines(file):
        if not line.endswith(b"\n") and not is_whole(line):
            torn = TornLine(place, len(line))
            break
        try:
            records.append(read(line, place))
            places.append(place)
        except RecordError as error:
            damaged.append(str(error))
    return StoredRecords(records=records, torn=torn, damaged=tuple(damaged), places=tuple(places))


def _lines(file: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the lines that are not empty, each with its place; the last one may lack its line end."""
    try:
        with open_file(file) as stream:
            for number, line in enumerate(stream, start=1):
                if not line.isspace():
                    yield f"{file}:{number}", line
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: OSError) -> RecordError:
    if isinstance(error, FileNotFoundError) and file.name == RECORDS_FILE and file.parent.is_dir():
        return RecordError(
            f"{file.parent}: is not a run folder: it has no {RECORDS_FILE}{_instead(file.parent)}"
        )
    return RecordError(f"{file}: cannot be read: {error.strerror}; give a run folder or its {RECORDS_FILE}")


def _instead(folder: Path) -> str:
    """Return which file or folder inside was perhaps meant."""
    inside = sorted((*folder.glob("*.jsonl"), *(file.parent for file in folder.glob(f"*/{RECORDS_FILE}"))))
    return f"; did you mean {inside[0]}?" if inside else "; give a folder that `qbench run` made"


def open_store(folder: Path) -> RunStore:
    """Return a run folder opened for writing, made where it does not exist; close it or use it in `with`.

    Raises RecordError when another process has it open or it cannot be written.
    """
    file = folder / RECORDS_FILE
    lock = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder)
        notice = _repaired(folder)
        descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        if lock is not None:
            lock.release()
        raise RecordError(f"{folder}: cannot be written: {error.strerror}; choose another folder") from error
    return RunStore(folder=folder, notice=notice, _records=descriptor, _lock=lock)


@dataclass(slots=True, kw_only=True)
class RunStore:
    """A run folder that this process alone may write to."""

    folder: Path
    notice: str | None
    """What was repaired on opening, None when nothing was."""
    _records: int
    _lock: BaseFileLock
    _closed: bool = field(default=False, init=False)

    @property
    def path(self) -> Path:
        """The file that records are appended to."""
        return self.folder / RECORDS_FILE

    def append(self, record: Record) -> None:
        """Write one record to the disk, whole or not at all.

        Raises RecordError when the disk is full or the file cannot be written, which leaves nothing behind,
        and when the file was moved or removed, which nobody would see otherwise.
        """
        line = encoded(record)
        start = os.fstat(self._records).st_size
        try:
            _write_all(self._records, line)
            os.fsync(self._records)
        except OSError as error:
            with contextlib.suppress(OSError):  # The next open_store repairs what cannot be cut off now.
                os.ftruncate(self._records, start)
            raise RecordError(
                f"{self.path}: record {record.point_id} was not written: {error.strerror}; "
                "earlier records are safe, so make room and run again"
            ) from error
        except BaseException:
            # An interrupt may strike between two halves of a line, but also after the whole of it.
            if os.fstat(self._records).st_size < start + len(line):
                os.ftruncate(self._records, start)
            raise
        self._in_place()

    def _in_place(self) -> None:
        """Raise RecordError where the path no longer leads to the open file, after saving what that holds."""
        ours = os.fstat(self._records)
        saved = self.path
        try:
            if os.path.samestat(ours, self.path.stat()):
                return
            saved = _free_name(self.path.with_name(SAVED_FILE))
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError:
            if ours.st_nlink:
                return  # A file system that does not answer says nothing of the file, which is written to.
            saved = _free_name(self.path.with_name(SAVED_FILE))
        if ours.st_nlink:
            raise RecordError(f"{self.path}: was moved during the run; its records are in the moved file")
        os.lseek(self._records, 0, os.SEEK_SET)
        with open(self._records, "rb", closefd=False) as stream:
            write_whole(saved, stream.read(), "its records are lost; run again")
        raise RecordError(
            f"{self.path}: was removed during the run; its records were written again to {saved}"
        )

    def close(self) -> None:
        """Release the folder for other writers; closing twice does nothing."""
        if not self._closed:
            self._closed = True
            os.close(self._records)
            with contextlib.suppress(OSError):
                (self.folder / HOLDER_FILE).unlink()
            self._lock.release()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._in_place()
        finally:
            self.close()


def write_records(file: Path, records: Iterable[Record]) -> None:
    """Replace a file of records in one step, its folder made where there is none.

    Raises RecordError when it cannot be written; the file is then as it was.
    """
    write_whole(file, b"".join(map(encoded, records)))


def _free_name(file: Path) -> Path:
    """Return the path, with a number before its ending where there is a file already."""
    numbered = (file.with_suffix(f".{number}{file.suffix}") for number in itertools.count(2))
    return next(path for path in itertools.chain([file], numbered) if not os.path.lexists(path))


def _write_all(descriptor: int, line: bytes) -> None:
    rest = memoryview(line)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _locked(folder: Path) -> BaseFileLock:
    """Return the lock of a folder, taken; the system releases it when the process ends in any way."""
    from filelock import FileLock, Timeout  # Reading records does without it.

    file = folder / LOCK_FILE
    if file.is_symlink():
        raise RecordError(f"{file}: is a symbolic link, but must be a regular file; remove it")
    lock = FileLock(file, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RecordError(
            f"{folder}: {_holder(folder)} is writing there; wait for it or choose another folder"
        ) from None
    try:
        write_whole(folder / HOLDER_FILE, f"{os.getpid()}\n")
    except BaseException:
        lock.release()
        raise
    return lock


def _holder(folder: Path) -> str:
    """Return who has a folder open, by the file beside the lock, which Windows lets no other read."""
    try:
        return f"process {int((folder / HOLDER_FILE).read_bytes())}"
    except (OSError, ValueError):
        return "another process"


def _repaired(folder: Path) -> str | None:
    """Make the file end with a whole line; a torn one is kept in a file of its own. Return what was done."""
    file = folder / RECORDS_FILE
    start, last = _last_line(file) if file.exists() else (0, b"")
    if not last:
        return None
    if is_whole(last):
        _append_bytes(file, b"\n")
        return f"{file}: the last record lacked its line end, which was added"
    _append_bytes(folder / TORN_FILE, last + b"\n")
    os.truncate(file, start)
    return f"{file}: the last line was torn ({len(last)} bytes); it was moved to {TORN_FILE}"


def _last_line(file: Path) -> tuple[int, bytes]:
    """Return where the last line begins and what of it there is, empty when the file ends with a line end."""
    with open_file(file) as stream:
        start = end = stream.seek(0, os.SEEK_END)
        tail = b""
        while start > 0 and b"\n" not in tail:
            start = max(0, start - BLOCK_BYTES)
            stream.seek(start)
            tail = stream.read(end - start)
    last = tail.rpartition(b"\n")[2]
    return end - len(last), last


def _append_bytes(file: Path, content: bytes) -> None:
    with file.open("ab") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
