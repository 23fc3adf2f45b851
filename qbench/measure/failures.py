"""What an exception in a worker means: out of memory, with what was asked for and when, or an error."""

from __future__ import annotations

import re
import traceback
from typing import Any

from qbench.errors import QbenchError
from qbench.measure.task import Measurement, Work
from qbench.units import GIB, KIB, MIB

_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cudaErrorMemoryAllocation|CUBLAS_STATUS_ALLOC_FAILED|bad_alloc",
    re.IGNORECASE,
)
_SIZE = r"(\d+(?:\.\d*)?) (bytes|KiB|MiB|GiB|TiB)"
# torch on the CPU: "you tried to allocate 64 bytes"; on CUDA: "Tried to allocate 2.00 GiB. GPU 0 has a total
# capacity of 23.64 GiB of which 1.06 GiB is free."; numpy: "Unable to allocate 64. GiB for an array".
_REQUESTED = re.compile(rf"allocate {_SIZE}")
_FREE = re.compile(rf"of which {_SIZE} is free")
_SCALE = {"bytes": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": 1024 * GIB}


def attempt(work: Work) -> Measurement:
    """Return the measurement of work done in this process; whatever it raises is its outcome."""
    try:
        return work()
    except Exception as error:
        return failure(error)


def failure(error: Exception, phase: str | None = None) -> Measurement:
    """Return the outcome that an exception is: oom, or error with its traceback.

    `phase` is where the work was: load, evaluate, or a phase of the step; None when that is not known.
    """
    text = str(error).strip() or type(error).__name__
    if isinstance(error, QbenchError):
        return Measurement(outcome="error", detail={"error": text})
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(text):
        return Measurement(
            outcome="oom", detail={"error": text.splitlines()[0], "oom": oom_facts(text, phase)}
        )
    detail = {"error": f"{type(error).__name__}: {text}", "phase": phase, "traceback": traceback.format_exc()}
    return Measurement(outcome="error", detail=detail)


def oom_facts(text: str, phase: str | None) -> dict[str, Any]:
    """Return phase, requested_bytes and free_bytes of running out of memory; None where unknown."""
    return {"phase": phase, "requested_bytes": _size(_REQUESTED, text), "free_bytes": _size(_FREE, text)}


def _size(pattern: re.Pattern[str], text: str) -> int | None:
    match = pattern.search(text)
    return None if match is None else int(float(match.group(1)) * _SCALE[match.group(2)])
