"""What an older version of a record held otherwise: one function for each step to the next version."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from qbench.units import parse_bytes

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]

_SIZE = r"(\d+(?:\.\d+)? (?:B|KiB|MiB|GiB))"
_SHORTAGE = re.compile(
    rf"oom in (?P<phase>\S+): (?P<op>.*?)(?: of (?P<module>\S+))? asks for {_SIZE}, {_SIZE} free"
)


def worded_fits(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of version 1 as those of version 2: a fit's verdict is one of four, with its numbers.

    Version 1 had a sentence instead, whose bytes are rounded; it named a single context of a measurement by
    one number.
    """
    detail = values.get("detail")
    if not isinstance(detail, dict):
        return values
    changed: dict[str, Any] = {}
    context = detail.get("context_bytes")
    if isinstance(context, int):
        changed["context_bytes"] = [context, context]
    fits = detail.get("fits")
    if isinstance(fits, dict):
        fits = [
            {"gpu": gpu, **(fit if isinstance(fit, dict) else {"fits": fit})} for gpu, fit in fits.items()
        ]
    if isinstance(fits, list):
        changed["fits"] = [_fit(fit, context) if isinstance(fit, dict) else fit for fit in fits]
    return values | {"detail": detail | changed} if changed else values


def _fit(fit: Mapping[str, Any], context: Any) -> dict[str, Any]:
    said, holds, room = fit.get("verdict"), fit.get("fits"), fit.get("headroom_bytes")
    text = said if isinstance(said, str) else ""
    if holds:
        return {**fit, "verdict": "tight" if fit.get("num_alloc_retries") else "fits"}
    failed = _SHORTAGE.fullmatch(text)
    if failed is None and room is None and text:
        return {**fit, "verdict": "unknown", "error": text}
    changed: dict[str, Any] = {"verdict": "does not fit"}
    if isinstance(room, int) and room < 0 <= room + _slack(fit, context):
        changed["verdict"] = "tight"
    if failed is not None:
        phase, op, module, requested, free = failed.groups()
        changed["shortage"] = {
            "phase": phase,
            "op": "" if op == "a tensor" else op,
            "module": module or "",
            "requested_bytes": parse_bytes(requested),
            "free_bytes": parse_bytes(free),
        }
    return {**fit, **changed}


def _slack(fit: Mapping[str, Any], context: Any) -> int:
    """Return least from most of the context, 0 where the plan's is not that of the card."""
    memory, reserved, room = (fit.get(k) for k in ("memory_bytes", "peak_reserved_bytes", "headroom_bytes"))
    match memory, reserved, room, context:
        case int(), int(), int(), [int(least), int(most)] if memory - reserved - room == most:
            return most - least
    return 0


UPGRADES: dict[int, Upgrade] = {1: worded_fits}
"""For each older version, the function that turns its values into those of the next version."""
