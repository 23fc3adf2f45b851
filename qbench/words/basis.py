"""How a result was obtained: planned, measured, or measured on a null GPU, which no report may leave out."""

from __future__ import annotations

from collections.abc import Iterable

from qbench.comparison.results import Result
from qbench.records.record import Kind

NULL_NOTE = "PyTorch's own allocator on a card that is not there; nothing was computed, so there is no speed."


def device_text(device: str | None) -> str:
    """Return a device as a reader knows it: cuda, cpu, null GPU."""
    return "null GPU" if device == "null" else device or "an unknown device"


def kind_text(kind: Kind, device: str | None) -> str:
    """Return 'planned', 'measured', 'on a null GPU' or 'dry run'."""
    if kind == "dryrun":
        return "dry run"
    if kind == "plan":
        return "planned"
    return "on a null GPU" if device == "null" else "measured"


def basis_text(kind: Kind, device: str | None, card: str | None = None) -> str:
    """Return 'planned for cuda', 'measured on cpu', 'measured on a null GPU (RTX 4090)'."""
    if kind == "dryrun":
        return f"dry run on a {device_text(device)}{f' ({card})' if card else ''}"
    preposition = "for" if kind == "plan" else "on a" if device == "null" else "on"
    how = "planned" if kind == "plan" else "measured"
    return f"{how} {preposition} {device_text(device)}{f' ({card})' if card else ''}"


def basis(result: Result) -> str:
    """Return `basis_text` of a result."""
    return basis_text(result.kind, result.device, result.latest.card)


def where(result: Result) -> str:
    """Return `basis` with the name of the card where it was measured on one."""
    name = dict(result.machine).get("device_name")
    return f"measured on {name}" if name and result.device == "cuda" else basis(result)


def measured_text(results: Iterable[Result]) -> str:
    """Return the heading of what was measured: 'measured', 'on a null GPU', or both."""
    found = (kind_text(result.kind, result.device) for result in results if result.kind == "measurement")
    return " or ".join(dict.fromkeys(found)) or "measured"
