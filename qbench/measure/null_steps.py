"""Two steps of a point on the null GPU of this process, and what the allocator counts over them.

Neither times nor phases are taken, so that the steps are those of a program of the user's own.
"""

from __future__ import annotations

import gc
from typing import Any, cast

from qbench.errors import StepError
from qbench.measure.environment import environment
from qbench.measure.task import Measurement, Phase
from qbench.quick_imports import quick_imports
from qbench.records.parts import Environment, Metrics, OomFacts
from qbench.records.software import code_id
from qbench.scenario.schema import Point

FIGURES = ("static_bytes", "peak_allocated_bytes", "peak_reserved_bytes")
STEPS = 2

_CODE = (
    *("catalog/gpus.py", "catalog/capabilities.py", "catalog/models.py", "catalog/data/models.jsonl"),
    *("catalog/data/gpus.csv", "catalog/data/compute_capabilities.csv"),
    *("step", "nullgpu", "measure/null_steps.py"),
)
"""Folders and files of qbench that these steps go through; how plans are made is not among them."""


def steps_environment(gpu: str) -> Environment:
    """Return what a measurement of the steps on a card of the catalog stands on: machine, versions, code."""
    return {**environment("null", gpu), "code_id": code_id(_CODE)}


def measure_steps(point: Point, gpu: str) -> Measurement:
    """Return `FIGURES` over loading and the steps, in a process that has the card and has not used CUDA.

    The outcome is oom, with phase and bytes, where the card is too small, and error where a library has no
    kernel for the step.
    """
    shortage: OomFacts = {"kind": "torch", "phase": "load"}

    def on_phase(name: str) -> None:
        shortage["phase"] = name

    done = _attempted(point, shortage, on_phase)
    return Measurement(
        outcome=done.outcome, metrics=done.metrics, detail=done.detail, environment=steps_environment(gpu)
    )


def _attempted(point: Point, shortage: OomFacts, on_phase: Phase) -> Measurement:
    import torch

    try:
        return Measurement(outcome="ok", metrics=_counted(point, shortage, on_phase))
    except torch.OutOfMemoryError as error:
        return Measurement(outcome="oom", detail={"error": str(error).splitlines()[0], "oom": shortage})
    except StepError as error:
        return Measurement(outcome="error", detail={"error": str(error)})
    except (RuntimeError, ValueError) as error:
        # What a library has no kernel for, it says by an error of these classes.
        return Measurement(outcome="error", detail={"error": f"{type(error).__name__}: {error}"[:300]})


def _counted(point: Point, shortage: OomFacts, on_phase: Phase) -> Metrics:
    import torch

    with quick_imports():
        from qbench.step.training_step import build_step

    def on_shortage(device: int, requested: int, total: int, free: int) -> None:
        shortage["requested_bytes"], shortage["free_bytes"] = requested, free

    torch.set_num_threads(1)  # Adapters are filled on the host: small tensors, for which threads wait.
    torch.cuda.init()
    c_torch: Any = torch._C
    c_torch._cuda_attach_out_of_memory_observer(on_shortage)
    step = build_step(point, "cuda")
    gc.collect()
    static_bytes = torch.cuda.memory_allocated()
    step.on_phase = on_phase
    gc.disable()
    for _ in range(STEPS):
        step.run().item()
    figures = static_bytes, torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return cast(Metrics, dict(zip(FIGURES, figures, strict=True)))
