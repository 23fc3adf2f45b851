"""One record as one line of JSON, and back."""

from __future__ import annotations

import json
import math
from typing import Any

from pydantic_core import from_json

from qbench.errors import RecordError
from qbench.records.record import Record, brief, record_from_dict

_TIMELINE = (b'"timeline":[[', b"]]")
"""How a timeline begins and ends. In a string its quotes would be escaped, so that it is always a key."""


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


def without_timeline(line: bytes) -> bytes:
    """Return the line of a record with null for its timeline; one that is no list of pairs stays."""
    opening, closing = _TIMELINE
    start = line.find(opening)
    end = line.find(closing, start)
    if start < 0 or end < 0:
        return line
    pairs = line[start + len(opening) : end]
    between = pairs.translate(None, b"0123456789")
    if between != b",],[" * (len(between) // 4) + b",":
        return line
    return b'%b"timeline":null%b' % (line[:start], line[end + len(closing) :])


def parsed_json(text: bytes) -> Any:
    """Return the value of a JSON text; NaN and infinity, which JSON lacks but some writers write, are None.

    Raises ValueError when it is no JSON, RecursionError when it nests too deeply.
    """
    try:
        return from_json(text, allow_inf_nan=False, cache_strings="keys")
    except ValueError:
        # The slower parser knows more: these numbers, and halves of surrogate pairs.
        return json.loads(text, parse_constant=lambda _: None)


def parsed_record(line: bytes, where: str) -> Record:
    """Return the record of a line; `where` names the file and line in messages.

    Raises RecordError when it holds none.
    """
    try:
        values = parsed_json(line)
    except (ValueError, RecursionError) as error:
        reason = "it nests too deeply" if isinstance(error, RecursionError) else str(error)
        raise RecordError(
            f"{where}: not JSON: {reason}; the file was changed by something else than qbench"
        ) from error
    if not isinstance(values, dict):
        raise RecordError(f"{where}: {brief(values)} is not a record; one JSON object a line is expected")
    return record_from_dict(values, where)
