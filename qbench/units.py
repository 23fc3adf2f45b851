"""Units: binary byte sizes and how each unit is printed. Bytes are integers everywhere else."""

from __future__ import annotations

import re
from typing import Any

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
MOST_BYTES = 1 << 50
"""What no size of a device reaches."""

NOT_AVAILABLE = "n/a"

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What moves a cursor, ends a line or turns the direction of text: control characters and Unicode's own."""


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


def format_bytes(num_bytes: float | None) -> str:
    """Return a byte count as text with a binary unit: '12.55 GiB', '17.0 MiB', '512 B'."""
    if num_bytes is None:
        return NOT_AVAILABLE
    size = abs(num_bytes)
    if size >= GIB:
        return f"{num_bytes / GIB:.2f} GiB"
    if size >= MIB:
        return f"{num_bytes / MIB:.1f} MiB"
    if size >= KIB:
        return f"{num_bytes / KIB:.1f} KiB"
    return f"{num_bytes:.0f} B"


def parse_bytes(text: str) -> int:
    """Return the bytes of a size with a binary unit, such as '24GiB' or '512 MiB'.

    Raises ValueError when the text has no number or no unit of B, KiB, MiB, GiB, and from MOST_BYTES on.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(GiB|MiB|KiB|B)\s*", text)
    if match is None:
        raise ValueError(f"{text!r} is not a size; write a number with B, KiB, MiB or GiB, such as 24GiB")
    size = float(match.group(1)) * {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}[match.group(2)]
    if size >= MOST_BYTES:
        raise ValueError(f"{text[:40]!r} is more than any device has; allowed: less than 1048576GiB")
    return int(size)


def format_seconds(seconds: float | None) -> str:
    """Return a duration as text: '312 ms', '4.21 s', '12 min', '3.4 h'."""
    if seconds is None:
        return NOT_AVAILABLE
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def format_count(count: float | None) -> str:
    """Return a count with thousands separators: '786,432'."""
    return NOT_AVAILABLE if count is None else f"{count:,.0f}"


def format_value(value: float | None, unit: str) -> str:
    """Return a value as text in its unit; unknown is 'n/a', never a number."""
    if value is None:
        return NOT_AVAILABLE
    if unit == "bytes":
        return format_bytes(value)
    if unit == "s":
        return format_seconds(value)
    if unit == "count":
        return format_count(value)
    if unit == "FLOP":
        return f"{value:.3g} FLOP"
    if unit == "USD/Mtok":
        return f"${value:.2f}/Mtok"
    if unit == "tokens/s":
        return f"{value:,.3g} tokens/s" if value < 100 else f"{value:,.0f} tokens/s"
    if unit == "nats/token":
        return f"{value:.3f} nats/token"
    return f"{value:.4g} {unit}".rstrip()


def plain_text(value: Any) -> str:
    """Return a setting or fact as a person would write it; unknown is 'unknown'."""
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain_text(item) for item in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def has_control(text: str) -> bool:
    """Say whether text holds a character that `printable` writes as an escape."""
    return _CONTROL.search(text) is not None


def printable(text: str) -> str:
    """Return text on one line, with control characters as escapes: '\\n', '\\x1b'.

    Names and errors come from files of others; a terminal or a CI system must not act on what they hold.
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
