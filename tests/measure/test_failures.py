"""What exceptions of the libraries mean, in their own words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qbench.errors import StepError
from qbench.measure.failures import attempt, failure
from qbench.measure.task import Measurement

# c10/cuda/CUDACachingAllocator.cpp, as users of a 24 GB card see it.
CUDA_TEXT = (
    "CUDA out of memory. Tried to allocate 172.00 MiB. GPU 0 has a total capacity of 23.64 GiB of which "
    "57.06 MiB is free. Including non-PyTorch memory, this process has 23.57 GiB memory in use. Of the "
    "allocated memory 22.90 GiB is allocated by PyTorch, and 240.21 MiB is reserved by PyTorch but "
    "unallocated."
)


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
    assert done.detail["oom"] == {"phase": "loss", "requested_bytes": 4 * 10**15, "free_bytes": None}
    assert "DefaultCPUAllocator" in done.detail["error"]


def test_torch_on_cuda_says_what_was_asked_and_what_is_free():
    done = failure(torch.OutOfMemoryError(CUDA_TEXT), "backward")
    assert done.outcome == "oom"
    assert done.detail["oom"] == {
        "phase": "backward",
        "requested_bytes": 172 * 1024**2,
        "free_bytes": int(57.06 * 1024**2),
    }


def test_numpy_says_what_was_asked():
    # 2^46 doubles of 8 B are 2^49 B, which numpy writes as "512. TiB".
    done = failure(caught(lambda: np.empty(2**46)))
    assert done.outcome == "oom"
    assert done.detail["oom"] == {"phase": None, "requested_bytes": 2**49, "free_bytes": None}


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_other_ways_to_say_it_leave_the_sizes_unknown(error: Exception):
    done = failure(error, "load")
    assert done.outcome == "oom"
    assert done.detail["oom"] == {"phase": "load", "requested_bytes": None, "free_bytes": None}
    assert done.detail["error"]


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
