"""Rows of the catalog's data files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

Row = TypeVar("Row")
Value = TypeVar("Value")

DATA = Path(__file__).with_name("data")


def catalog_rows(file: str, make: Callable[..., Row], **parse: Callable[[Any], object]) -> tuple[Row, ...]:
    """Return what `make` makes of each line of a .csv or .jsonl file, its columns as keyword arguments.

    A column goes through its function in `parse`, or stays as it is, which is text in a .csv file.
    """
    with (DATA / file).open(encoding="utf-8", newline="") as lines:
        rows: Iterable[dict[str, Any]] = (
            csv.DictReader(lines) if file.endswith(".csv") else map(json.loads, lines)
        )
        return tuple(make(**row | {name: kind(row[name]) for name, kind in parse.items()}) for row in rows)


def optional(kind: Callable[[str], Value]) -> Callable[[str], Value | None]:
    """Return a function that gives None for an empty text, and what `kind` gives for any other."""
    return lambda text: kind(text) if text else None


def listed(text: str) -> tuple[str, ...]:
    """Return the names in a text, which semicolons divide."""
    return tuple(text.split(";")) if text else ()


def yes_or_no(text: str) -> bool:
    """Return whether a text is yes; raises KeyError when it is neither that nor no."""
    return {"yes": True, "no": False}[text]


def compute_capability(text: str) -> tuple[int, int]:
    """Return a CUDA compute capability, such as (8, 6) of 8.6."""
    major, minor = map(int, text.split("."))
    return major, minor
