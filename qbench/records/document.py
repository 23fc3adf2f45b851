"""Records from what a command is pointed at: a run folder, a .jsonl file, or a document that was printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qbench.errors import RecordError
from qbench.files import read_bytes
from qbench.records.lines import is_whole, parsed_json
from qbench.records.record import Kind, Record, record_from_dict
from qbench.records.store import RECORDS_FILE, read_records, read_stored


def read_any(path: Path, *, bulk: bool = True) -> list[Record]:
    """Return the records of a run folder, a .jsonl file, or a .json file as `qbench plan --json` prints it.

    `bulk` is as in `read_records`. Raises RecordError, with file and line or number, when there is no
    such file or something in it is not a record. A torn last line is what a killed run leaves in its folder;
    in any other file it is damage.
    """
    if path.is_dir() or path.name == RECORDS_FILE:
        return read_records(path, bulk=bulk)
    if path.suffix == ".json":
        return _read_document(path)
    stored = read_stored(path, bulk=bulk)
    if stored.damaged:
        raise RecordError(stored.damaged[0])
    if stored.torn is not None:
        raise RecordError(f"{stored.torn.place}: the last line is incomplete; restore the whole file")
    return stored.records


def _read_document(path: Path) -> list[Record]:
    try:
        document = parsed_json(read_bytes(path))
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}; give a run folder or a file") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: not JSON: {str(error).splitlines()[0]}") from error
    listed = document.get("records") if isinstance(document, dict) else None
    if not isinstance(listed, list) or not all(isinstance(values, dict) for values in listed):
        raise RecordError(f"{path}: has no list of records; create it with `qbench plan TARGET --json`")
    return [record_from_dict(values, f"{path}: record {number}") for number, values in enumerate(listed, 1)]


def read_history(paths: Iterable[Path]) -> list[Record]:
    """Return the records of many runs: of each run folder or file, and of all that a folder holds.

    Raises RecordError when a path holds no records, or something in a file is not a record.
    """
    return [record for path in paths for file in _run_files(path) for record in read_any(file)]


def _run_files(path: Path) -> list[Path]:
    if not path.is_dir() or (path / RECORDS_FILE).exists():
        return [path]
    files = sorted({*path.glob("*.jsonl"), *path.rglob(RECORDS_FILE)})
    if not files:
        raise RecordError(f"{path}: contains no run folder and no .jsonl file; name one that does")
    return files


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordPlaces:
    """Where in a file each point's records are, for those who point a person at them."""

    file: str
    """The file, relative to the current folder where it is inside."""
    lines: Mapping[tuple[Kind, str], int] = field(default_factory=dict)
    """Line of the last record of each kind and point_id; empty for a document of several lines a record."""

    def line(self, kind: Kind, point_id: str) -> int:
        """Return the line of a point's record, the first of the file where it is not known."""
        return self.lines.get((kind, point_id), 1)


def record_places(path: Path) -> RecordPlaces:
    """Return where the records are that `read_any` reads from a path."""
    file = path / RECORDS_FILE if path.is_dir() else path
    lines: dict[tuple[Kind, str], int] = {}
    if file.suffix != ".json":
        for number, line in enumerate(read_bytes(file).split(b"\n"), start=1):
            # A torn last line is no record; whoever reads the records says so.
            if line.strip() and is_whole(line):
                values = parsed_json(line)
                lines[values["kind"], values["point_id"]] = number
    absolute, here = file.resolve(), Path.cwd()
    name = absolute.relative_to(here) if absolute.is_relative_to(here) else file
    return RecordPlaces(file=name.as_posix(), lines=lines)
