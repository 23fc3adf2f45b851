"""What was alive when most was allocated, from PyTorch's own history of allocations."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from .places import Origin, Place, module_of, origin

BLOCK = 512
"""kMinBlockSize of c10/cuda/CUDACachingAllocator.cpp: sizes are rounded up to it."""
LARGEST = 25
"""Places that are listed."""
Event = Mapping[str, Any]


def peaks(
    torch: Any, holders: Sequence[Mapping[str, Any]], marks: Sequence[Mapping[str, Any]], *, at_oom: bool
) -> dict[str, Any]:
    """Return for each device what was alive at its peak, or when memory ran out last.

    Each is {"allocated": bytes of the blocks, "phases": {name: {"allocated", "reserved"}}, "breakdown": bytes
    by category, "places": [{"bytes", "blocks", "category", "module", "place", "user", "is_backward"}]}.
    """
    traces = torch.cuda.memory._snapshot()["device_traces"]
    workspaces = [set()] * len(traces) if at_oom else _workspaces(torch)
    return {
        str(device): _Replay(trace, marks, at_oom).described(holders, workspaces[device])
        for device, trace in enumerate(traces)
        if trace
    }


def _workspaces(torch: Any) -> list[set[int]]:
    """Return the addresses of cuBLAS's workspaces on each device, which are given back to see them."""
    before = [len(trace) for trace in torch.cuda.memory._snapshot()["device_traces"]]
    torch._C._cuda_clearCublasWorkspaces()
    after = torch.cuda.memory._snapshot()["device_traces"]
    return [
        {event["addr"] for event in trace[length:] if event["action"] == "free_completed"}
        for trace, length in zip(after, before, strict=True)
    ]


class _Replay:
    """One device's history, gone through once."""

    def __init__(self, trace: Sequence[Event], marks: Sequence[Mapping[str, Any]], at_oom: bool) -> None:
        self.trace = trace
        self.phases: dict[str, dict[str, int]] = {}
        self.freed: dict[int, int] = {}
        """Number of the event that freed what an event allocated."""
        self._origins: dict[int, Origin] = {}
        self._ends = [(mark["time_us"], mark["phase"]) for mark in marks]
        self.best_at, self.best = -1, 0
        self._walk()
        if at_oom:
            ran_out = [number for number, event in enumerate(trace) if event["action"] == "oom"]
            self.best_at = ran_out[-1] if ran_out else len(trace) - 1

    def _walk(self) -> None:
        live: dict[int, int] = {}
        now = reserved = number = 0
        phase = self._ends[0][1] if self._ends else "load"
        left = list(self._ends)
        for number, event in enumerate(self.trace):
            while left and event["time_us"] > left[0][0]:
                left.pop(0)
                phase = left[0][1] if left else phase
            action, size = event["action"], event["size"]
            if action == "alloc":
                live[event["addr"]] = number
                now += _rounded(size)
            elif action == "free_requested" and event["addr"] in live:
                made = live.pop(event["addr"])
                self.freed[made] = number
                now -= _rounded(self.trace[made]["size"])
            elif action in ("segment_alloc", "segment_map"):
                reserved += size
            elif action in ("segment_free", "segment_unmap"):
                reserved -= size
            if now > self.best:
                self.best, self.best_at = now, number
            most = self.phases.setdefault(phase, {"allocated": 0, "reserved": 0})
            most["allocated"] = max(most["allocated"], now)
            most["reserved"] = max(most["reserved"], reserved)

    def described(self, holders: Sequence[Mapping[str, Any]], workspaces: set[int]) -> dict[str, Any]:
        """Return what is alive at the peak by category and by place."""
        at = self.trace[self.best_at]["time_us"] if self.trace else 0
        held = self._held(holders, at)
        backward = [
            n for n, event in enumerate(self.trace) if event["action"] == "alloc" and self._backward(n)
        ]
        live = [
            number
            for number in range(self.best_at + 1)
            if self.trace[number]["action"] == "alloc"
            and self.freed.get(number, len(self.trace)) > self.best_at
        ]
        breakdown: dict[str, int] = {}
        rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        for number in live:
            event = self.trace[number]
            kind = _held_as(event["addr"], held, workspaces) or self._kind(number, backward)
            size = _rounded(event["size"])
            breakdown[kind] = breakdown.get(kind, 0) + size
            found = self._origin(number)
            row = rows.setdefault((kind, found.place, found.is_backward), _row(kind, found))
            row["bytes"] += size
            row["blocks"] += 1
        largest = sorted(rows.values(), key=lambda row: -row["bytes"])[:LARGEST]
        last = self._origin(self.best_at) if self.trace else None
        return {
            "allocated": sum(breakdown.values()),
            "phases": self.phases,
            "breakdown": breakdown,
            "places": largest,
            "made_by": None if last is None else _row("", last),
            "events": len(self.trace),
        }

    def _held(self, holders: Sequence[Mapping[str, Any]], at: int) -> Mapping[str, Any]:
        """Return what held memory at a time; they are known as each update begins."""
        before = [each for each in holders if each["time_us"] < at]
        after = holders[len(before) :]
        of_update = bool(self.trace) and self._origin(self.best_at).in_optimizer
        nearest = (*reversed(before), *after) if of_update else (*after, *reversed(before))
        return nearest[0] if nearest else {}

    def _origin(self, number: int) -> Origin:
        if number not in self._origins:
            self._origins[number] = origin(self.trace[number].get("frames") or ())
        return self._origins[number]

    def _backward(self, number: int) -> bool:
        return self._origin(number).is_backward

    def _kind(self, number: int, backward: Sequence[int]) -> str:
        """Return activations for what the forward pass leaves to the backward pass, else temporaries."""
        found = self._origin(number)
        if found.is_backward or found.in_optimizer:
            return "temporaries"
        end = self.freed.get(number, len(self.trace))
        following = bisect_right(backward, number)
        if following < len(backward):
            return "activations" if backward[following] < end else "temporaries"
        return "activations" if end == len(self.trace) else "temporaries"


def _rounded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _held_as(at: int, held: Mapping[str, Any], workspaces: set[int]) -> str | None:
    if at in workspaces:
        return "workspace"
    kinds = ("gradients", "adapters", "quant_state", "weights", "optimizer")
    return next((kind for kind in kinds if at in held.get(kind, ())), None)


def _row(kind: str, found: Origin) -> dict[str, Any]:
    def text(place: Place | None) -> str | None:
        return None if place is None else f"{place.file}:{place.line}"

    return {
        "bytes": 0,
        "blocks": 0,
        "category": kind,
        "module": None if found.place is None else module_of(found.place),
        "place": text(found.place),
        "user": text(found.user),
        "is_backward": found.is_backward,
    }
