"""What exceptions of the libraries mean, in their own words."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch

from qbench.errors import StepError
from qbench.measure.failures import attempt, failure, oom_kind
from qbench.measure.task import Measurement

# c10/cuda/CUDACachingAllocator.cpp, as users of a 24 GB card see it.
CUDA_TEXT = (
    "CUDA out of memory. Tried to allocate 172.00 MiB. GPU 0 has a total capacity of 23.64 GiB of which "
    "57.06 MiB is free. Including non-PyTorch memory, this process has 23.57 GiB memory in use. Of the "
    "allocated memory 22.90 GiB is allocated by PyTorch, and 240.21 MiB is reserved by PyTorch but "
    "unallocated."
)


def unknown(**known: object) -> dict[str, object]:
    """Return the facts of running out of memory, None but for the known ones."""
    names = ("kind", "phase", "requested_bytes", "free_bytes", "total_bytes", "reserved_bytes")
    return dict.fromkeys(names) | known


def caught(work: object) -> Exception:
    try:
        work()  # type: ignore[operator]
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_torch_on_the_cpu_says_what_was_asked():
    # 10^15 fp32 numbers of 4 B.
    done = failure(caught(lambda: torch.empty(10**15)), "loss")
    assert done.outcome == "oom"
    assert done.detail["oom"] == unknown(kind="host", phase="loss", requested_bytes=4 * 10**15)
    assert "DefaultCPUAllocator" in done.detail["error"]


def test_torch_on_cuda_says_what_was_asked_and_what_is_free():
    done = failure(torch.OutOfMemoryError(CUDA_TEXT), "backward")
    assert done.outcome == "oom"
    assert done.detail["oom"] == {
        "kind": "torch",
        "phase": "backward",
        "requested_bytes": 172 * 1024**2,
        "free_bytes": int(57.06 * 1024**2),
        "total_bytes": int(23.64 * 1024**3),
        # Allocated, and reserved but unallocated.
        "reserved_bytes": int(22.90 * 1024**3) + int(240.21 * 1024**2),
    }


def test_numpy_says_what_was_asked():
    # 2^46 doubles of 8 B are 2^49 B, which numpy writes as "512. TiB".
    done = failure(caught(lambda: np.empty(2**46)))
    assert done.outcome == "oom"
    assert done.detail["oom"] == unknown(kind="host", requested_bytes=2**49)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "host"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "host"),
        (RuntimeError("std::bad_alloc"), "host"),
        (RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"), "cuda"),
        # bitsandbytes' and cuBLAS's own calls, whose memory is not torch's.
        (RuntimeError("Error out of memory at line 390 in file /src/csrc/ops.cu"), "bitsandbytes"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "cublas",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
            "cublas",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "cudnn"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), "cudnn"),
        (
            RuntimeError(
                'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "../c10/cuda/CUDACachingAllocator.cpp":1124, '
                "please report a bug to PyTorch."
            ),
            "torch",
        ),
    ],
)
def test_other_ways_to_say_it_leave_the_sizes_unknown(error: Exception, kind: str):
    done = failure(error, "load")
    assert done.outcome == "oom"
    assert done.detail["oom"] == unknown(kind=kind, phase="load")
    assert done.detail["error"]


def test_where_cuda_runs_the_card_itself_says_what_the_message_does_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (7, 24))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 13)
    done = failure(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "forward")
    assert done.detail["oom"] == unknown(
        kind="cublas", phase="forward", free_bytes=7, total_bytes=24, reserved_bytes=13
    )
    # What the message says stands, and the host's memory is not the card's.
    said = failure(torch.OutOfMemoryError(CUDA_TEXT), "backward").detail["oom"]
    assert said["free_bytes"] == int(57.06 * 1024**2)
    assert failure(MemoryError(), "load").detail["oom"] == unknown(kind="host", phase="load")


@pytest.mark.parametrize(("free_mib", "outcome"), [(57, "oom"), (20_000, "error")])
def test_a_library_that_does_not_start_is_out_of_memory_where_little_is_free(
    monkeypatch: pytest.MonkeyPatch, free_mib: int, outcome: str
):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free_mib << 20, 24 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 13)
    text = "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"
    assert failure(RuntimeError(text), "forward").outcome == outcome


def test_a_card_that_no_longer_answers_leaves_the_sizes_unknown(monkeypatch: pytest.MonkeyPatch):
    def broken() -> tuple[int, int]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    done = failure(RuntimeError("CUDA error: out of memory"), "load")
    assert done.detail["oom"] == unknown(kind="cuda", phase="load")


@pytest.mark.parametrize(
    "text", ["illegal memory access", "CUBLAS_STATUS_EXECUTION_FAILED", "allocated 3 GiB"]
)
def test_other_errors_are_not_out_of_memory(text: str):
    assert oom_kind(text) is None


def test_an_error_of_qbench_needs_no_traceback():
    assert failure(StepError("no such module")) == Measurement(
        outcome="error", detail={"error": "no such module"}
    )


def test_any_other_error_keeps_class_phase_and_traceback():
    def fails() -> Measurement:
        raise KeyError("absmax")

    done = attempt(fails)
    assert done.outcome == "error"
    assert done.detail["error"] == "KeyError: 'absmax'"
    assert "in fails" in done.detail["traceback"]


def test_work_that_goes_well_is_handed_through():
    fine = Measurement(outcome="ok", metrics={"flops": 1})
    assert attempt(lambda: fine) is fine
