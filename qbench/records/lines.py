"""One record as one line of JSON, and back."""

from __future__ import annotations

import json
import math
import string
from typing import Any, NamedTuple

from pydantic_core import from_json

from qbench.errors import RecordError
from qbench.records.record import Record, brief, record_from_dict, sound_record


class _Bulk(NamedTuple):
    """A long list or object of a record that few readers need, as it is written."""

    null: bytes
    """Its key with null for a value."""
    opening: bytes
    """How it begins. In a string its quotes would be escaped, so that it is always a key."""
    stop: bytes
    """A byte that it does not hold, quick to find: the first one is the last of `closing`, or follows it."""
    closing: bytes
    contents: bytes
    """Characters of its numbers and names; without them, all of it but the last is `each`."""
    each: bytes
    last: bytes


_DIGITS = string.digits.encode()
_BULK = (
    _Bulk(b'"timeline":null', b'"timeline":[[', b'"', b"]]", _DIGITS, b",],[", b","),
    _Bulk(
        b'"by_module":null',
        b'"by_module":{"',
        b"}",
        b"}",
        _DIGITS + string.ascii_letters.encode() + b"_.+-",
        b'":,"',
        b'":',
    ),
)


def encoded(record: Record) -> bytes:
    """Return a record as one line of JSON. NaN and infinity, which JSON lacks, become null."""
    values = record.to_dict()
    try:
        text = json.dumps(values, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(_finite(values), allow_nan=False, separators=(",", ":"))
    return text.encode() + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


def is_whole(line: bytes) -> bool:
    """Return whether a line is a complete JSON object: no part of one is, so it only lacks its line end."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def without_bulk(line: bytes) -> bytes:
    """Return the line of a record with null for its timeline and errors by module; what is damaged stays."""
    for bulk in _BULK:
        key = line.find(bulk.opening)
        if key < 0:
            continue
        start = key + len(bulk.opening)
        end = line.rfind(bulk.closing, start, line.find(bulk.stop, start) + 1)
        if end >= 0:
            between = line[start:end].translate(None, bulk.contents)
            if between == bulk.each * (len(between) // len(bulk.each)) + bulk.last:
                line = line[:key] + bulk.null + line[end + len(bulk.closing) :]
    return line


def parsed_json(text: bytes) -> Any:
    """Return the value of a JSON text; NaN and infinity, which JSON lacks but some writers write, are None.

    Raises ValueError when it is not JSON, RecursionError when it nests too deeply.
    """
    try:
        return from_json(text, allow_inf_nan=False, cache_strings="keys")
    except ValueError:
        # The slower parser knows more: these numbers, and halves of surrogate pairs.
        return json.loads(text, parse_constant=lambda _: None)


def parsed_without_bulk(line: bytes, where: str) -> Record:
    """Return the record of a line for reading alone (see `sound_line` and `without_bulk`).

    Raises RecordError as `parsed_record` does; of what was left out the form was looked at, not each number.
    """
    return sound_record(without_bulk(line)) or parsed_record(line, where)


def parsed_record(line: bytes, where: str) -> Record:
    """Return the record of a line; `where` names the file and line in messages.

    Raises RecordError when it holds none.
    """
    try:
        values = parsed_json(line)
    except (ValueError, RecursionError) as error:
        reason = "it nests too deeply" if isinstance(error, RecursionError) else str(error)
        raise RecordError(
            f"{where}: not JSON: {reason}; expected are records, as `qbench plan TARGET --json` and "
            "`qbench run` write them"
        ) from error
    if not isinstance(values, dict):
        raise RecordError(f"{where}: {brief(values)} is not a record; one JSON object per line is expected")
    return record_from_dict(values, where)
