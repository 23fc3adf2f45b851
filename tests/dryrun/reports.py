"""Reports as the agent writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qbench.catalog.gpus import find_gpu
from qbench.dryrun.process import Ended
from qbench.dryrun.result import Ran

MIB = 1 << 20


def report(
    *, rank: int = 0, steps: int = 3, ended: str = "steps", reserved: int = 10, **more: Any
) -> dict[str, Any]:
    """Return the report of a process that reserved so many MiB."""

    def mark(phase: str, allocated: int, peak: int) -> dict[str, Any]:
        stats = {"allocated": allocated * MIB, "peak_allocated": peak * MIB, "reserved": reserved * MIB}
        devices = {str(rank): stats | {"peak_reserved": reserved * MIB, "retries": 0, "ooms": 0}}
        return {"phase": phase, "time_us": 1, "devices": devices}

    place = {"place": "/x/site-packages/lib/a.py:3", "user": None, "is_backward": True, "module": "A.forward"}
    row = {"bytes": 4 * MIB, "blocks": 2, "category": "temporaries", **place}
    peak = {
        "allocated": 7 * MIB,
        "phases": {"load": {"allocated": 3 * MIB, "reserved": 4 * MIB}},
        "breakdown": {"weights": 3 * MIB, "temporaries": 4 * MIB},
        "places": [row],
        "made_by": {**row, "bytes": 0},
    }
    return {
        "rank": rank,
        "steps": steps,
        "ended": ended,
        "marks": [mark("load", 3, 3), mark("first_step", 4, 8)],
        "ooms": [],
        "counts": {"total_params": 10, "trainable_params": 5},
        "peak": {str(rank): peak},
        "step_times_s": [0.5] * steps,
        "assumed": {},
        "versions": {"torch": "2.13.0"},
        "python": "3.11.7",
        "host_peak_bytes": MIB,
        "problems": [],
        **more,
    }


OOM = {
    "phase": "first_step",
    "requested_bytes": 5 * MIB,
    "total_bytes": 9 * MIB,
    "free_bytes": MIB,
    "reserved_bytes": 8 * MIB,
    "step": 0,
    "place": "/x/site-packages/lib/a.py:3 A.forward",
    "user": "/x/train.py:7 <module>",
}


def ran(reports: Sequence[dict[str, Any]], exit_code: int | None = 0, tail: str = "", gpus: int = 1) -> Ran:
    """Return a run of `python train.py` on an RTX 4090 with these reports."""
    return Ran(
        command=["/opt/venv/bin/python", "train.py"],
        gpu=find_gpu("RTX 4090"),
        gpus=gpus,
        steps=3,
        ended=Ended(exit_code=exit_code, tail=tail),
        reports=reports,
    )
