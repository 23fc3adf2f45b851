"""What an exception in a worker means: out of memory, with what was requested and when, or an error."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, Literal, cast

from qbench.errors import QbenchError
from qbench.measure.task import Attempt, Measurement
from qbench.records.parts import Detail, OomFacts
from qbench.units import GIB, KIB, MIB

OomKind = Literal["torch", "cuda", "bitsandbytes", "cublas", "cudnn", "host", "kernel"]
"""Who had no memory left: torch's CUDA allocator, a bare call of CUDA, bitsandbytes' own library, cuBLAS,
cuDNN, the host's allocator, or the kernel, which then ended the worker."""

_KINDS: tuple[tuple[OomKind, re.Pattern[str]], ...] = (
    # cuBLAS: torch/csrc/cuda, TORCH_CUDABLAS_CHECK; its handle and workspace are what does not fit.
    ("cublas", re.compile(r"CUBLAS_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)")),
    ("cudnn", re.compile(r"CUDNN_STATUS_(INTERNAL_ERROR_(DEVICE|HOST)_)?ALLOC(ATION)?_FAILED")),
    # bitsandbytes/csrc: CUDA_CHECK_RETURN prints "Error out of memory at line 390 in file ..." and exits.
    ("bitsandbytes", re.compile(r"^Error out of memory at line \d+ in file", re.MULTILINE)),
    # c10/cuda/CUDACachingAllocator.cpp.
    ("torch", re.compile(r"(CUDA|HIP) out of memory\. Tried to allocate")),
    # The same file, where it asks NVML for the message of having run out, and NVML fails.
    ("torch", re.compile(r"NVML_SUCCESS == .*INTERNAL ASSERT FAILED.*CUDACachingAllocator")),
    ("cuda", re.compile(r"CUDA.*out of memory|cudaErrorMemoryAllocation", re.IGNORECASE)),
    # c10/core/impl/alloc_cpu.cpp; the C library's text for ENOMEM; C++.
    ("host", re.compile(r"can(no|')t allocate memory|bad_alloc|out of memory", re.IGNORECASE)),
)
ROOM_BYTES = GIB
"""Where so much is free, cuBLAS did not fail because memory ran out: its handle takes some hundred MiB."""

_SIZE = r"(\d+(?:\.\d*)?) (bytes|KiB|MiB|GiB|TiB)"
# torch on the CPU: "you tried to allocate 64 bytes"; on CUDA: "Tried to allocate 2.00 GiB. GPU 0 has a total
# capacity of 23.64 GiB of which 1.06 GiB is free."; numpy: "Unable to allocate 64. GiB for an array".
_REQUESTED = re.compile(rf"allocate {_SIZE}")
_FREE = re.compile(rf"of which {_SIZE} is free")
_TOTAL = re.compile(rf"total capacity of {_SIZE}")
_ALLOCATED = re.compile(rf"{_SIZE} is allocated by PyTorch")
_UNUSED = re.compile(rf"{_SIZE} is reserved by PyTorch but unallocated")
_SCALE = {"bytes": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": 1024 * GIB}


def attempt(work: Attempt) -> Measurement:
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
    kind = "host" if isinstance(error, MemoryError) else oom_kind(text)
    card = _card_now() if kind not in (None, "host", "kernel") else {}
    if "CUBLAS_STATUS_NOT_INITIALIZED" in text and (card.get("free_bytes") or 0) > ROOM_BYTES:
        kind = None
    if kind is not None:
        facts = oom_facts(text, phase, kind)
        unsaid = {name: value for name, value in card.items() if facts.get(name) is None}
        facts = cast(OomFacts, {**facts, **unsaid})
        return Measurement(outcome="oom", detail={"error": text.splitlines()[0], "oom": facts})
    detail: Detail = {
        "error": f"{type(error).__name__}: {text}",
        "phase": phase,
        "traceback": traceback.format_exc(),
    }
    return Measurement(outcome="error", detail=detail)


def ended_by(exit_code: int, oom_kills: int, last_lines: str = "") -> Measurement:
    """Return what became of a process that gave no answer. A negative exit code is a signal's.

    `oom_kills` is how many processes the kernel has ended meanwhile, as memory ran out.
    """
    detail: Detail = {"error": _ending(exit_code), "stderr_tail": last_lines}
    if exit_code == -signal.SIGKILL and oom_kills > 0:
        error = "the kernel ended the worker because the machine or its cgroup ran out of memory"
        return Measurement(outcome="oom", detail={**detail, "error": error, "oom": oom_facts("", None)})
    if oom_kind(last_lines) == "bitsandbytes" and exit_code == 1:
        error = "bitsandbytes ended the worker because its own allocation did not fit on the card"
        facts = oom_facts("", None, "bitsandbytes")
        return Measurement(outcome="oom", detail={**detail, "error": error, "oom": facts})
    return Measurement(outcome="crashed", detail=detail)


def _ending(exit_code: int) -> str:
    if exit_code >= 0:
        return f"the worker ended with exit code {exit_code} and gave no result"
    names = {number.value: number.name for number in signal.Signals}
    return f"the worker was ended by {names.get(-exit_code, f'signal {-exit_code}')}"


def kernel_oom_kills() -> int:
    """Return how many processes the kernel has ended as memory ran out, 0 where it does not count them."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0


def oom_kind(text: str) -> OomKind | None:
    """Return who ran out of memory by the words of a message or log; None if nothing did."""
    return next((kind for kind, words in _KINDS if words.search(text)), None)


def oom_facts(text: str, phase: str | None, kind: OomKind = "kernel") -> OomFacts:
    """Return kind, phase and what a message says in bytes: requested, free, total, reserved; None if not.

    free, total and reserved speak of the card; reserved is what torch's allocator held.
    """
    allocated, unused = _size(_ALLOCATED, text), _size(_UNUSED, text)
    return {
        "kind": kind,
        "phase": phase,
        "requested_bytes": _size(_REQUESTED, text),
        "free_bytes": _size(_FREE, text),
        "total_bytes": _size(_TOTAL, text),
        "reserved_bytes": None if allocated is None or unused is None else allocated + unused,
    }


def _card_now() -> OomFacts:
    """Return free, total and reserved bytes of the card where CUDA runs in this process, else nothing.

    What failed is still held by the traceback, so this is the card as it was when memory ran out.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    try:
        free, total = torch.cuda.mem_get_info()
        return {"free_bytes": free, "total_bytes": total, "reserved_bytes": torch.cuda.memory_reserved()}
    except RuntimeError:  # After some errors of CUDA the context answers nothing any more.
        return {}


def _size(pattern: re.Pattern[str], text: str) -> int | None:
    match = pattern.search(text)
    return None if match is None else int(float(match.group(1)) * _SCALE[match.group(2)])
