"""Records from what a command is pointed at: a run folder, a .jsonl file, or a document that was printed."""

from __future__ import annotations

import json
from pathlib import Path

from qbench.errors import RecordError
from qbench.records.record import Record, record_from_dict
from qbench.records.store import read_records


def read_any(path: Path) -> list[Record]:
    """Return the records of a run folder, a .jsonl file, or a .json file as `qbench plan --json` prints it.

    Raises RecordError, with file and line or number, when there is no such file or something in it is not a
    record.
    """
    return _read_document(path) if path.suffix == ".json" and not path.is_dir() else read_records(path)


def _read_document(path: Path) -> list[Record]:
    try:
        document = json.loads(path.read_bytes(), parse_constant=lambda _: None)
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}; give a run folder or a file") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: not JSON: {str(error).splitlines()[0]}") from error
    listed = document.get("records") if isinstance(document, dict) else None
    if not isinstance(listed, list) or not all(isinstance(values, dict) for values in listed):
        raise RecordError(f"{path}: holds no list of records; write it with `qbench plan TARGET --json`")
    return [record_from_dict(values, f"{path}: record {number}") for number, values in enumerate(listed, 1)]
