"""The null GPU in a process that was started for it, as by `pytest --qbench-null-gpu NAME`."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from qbench.catalog.gpus import find_gpu
from qbench.dryrun.result import CODE
from qbench.dryrun.run import agent_variables
from qbench.errors import QbenchError
from qbench.measure.environment import environment
from qbench.nullgpu import launcher
from qbench.nullgpu.environment import card_environment, card_here
from qbench.records.record import Record, run_id_of
from qbench.records.software import code_id
from qbench.scenario.program import Program
from qbench.scenario.schema import Point


def start_environment(name: str, variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables with which a process of this Python has the null GPU of that name.

    Raises QbenchError where the null GPU cannot be here, CatalogError for an unknown card.
    """
    card = card_environment(find_gpu(name))
    agent = agent_variables(Path(tempfile.gettempdir()), 0, variables)
    return {**variables, **agent, **launcher.preload_environment(variables), **card}


@dataclass(slots=True)
class OnNullGpu:
    """Memory that a block of code took on a null GPU."""

    gpu: str
    """Card of the catalog."""
    static_bytes: int = 0
    """Allocated when the block began."""
    _peaks: tuple[int, int] | None = None

    @property
    def peak_allocated_bytes(self) -> int:
        """Largest allocated memory, until now or to the end of the block."""
        return self._now()[0]

    @property
    def peak_reserved_bytes(self) -> int:
        """Largest memory held by CUDA's caching allocator, until now or to the end of the block."""
        return self._now()[1]

    def end(self) -> None:
        """Keep the peaks as they are."""
        self._peaks = self._now()

    def record(self, name: str) -> Record:
        """Return what was seen as a record of kind dryrun, for `qbench check`; `name` is its identity."""
        allocated, reserved = self._now()
        return Record(
            run_id=run_id_of("dryrun"),
            point=Point(model=name, program=Program(command=(name,))),
            kind="dryrun",
            outcome="ok",
            metrics={
                "static_bytes": self.static_bytes,
                "peak_allocated_bytes": allocated,
                "peak_reserved_bytes": reserved,
            },
            environment={**environment("null", self.gpu), "code_id": code_id(CODE)},
        )

    def _now(self) -> tuple[int, int]:
        from torch import cuda

        return self._peaks or (cuda.max_memory_allocated(), cuda.max_memory_reserved())


@contextlib.contextmanager
def null_gpu(name: str | None = None) -> Iterator[OnNullGpu]:
    """Watch the memory of a block of code on the null GPU of this process, which must be that card.

        with qbench.null_gpu("RTX 4090") as seen:
            train()
        print(seen.peak_allocated_bytes)

    Yields an `OnNullGpu`: `peak_allocated_bytes` and `peak_reserved_bytes` of the block, in bytes, and
    `record(name)`, a record of them. Raises QbenchError where the process was not started for it, or for
    another card.
    """
    here = card_here() if "torch" not in sys.modules or launcher.is_loaded() else None
    if not launcher.is_loaded() or here is None:
        raise QbenchError(
            "this process has no null GPU; start it by `pytest --qbench-null-gpu NAME`, or run the program "
            "by `qbench dryrun --gpu NAME -- COMMAND`"
        )
    if name is not None and find_gpu(name).name != here:
        raise QbenchError(f"the null GPU of this process is the {here}, not the {find_gpu(name).name}")
    import torch
    from torch import cuda

    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()  # So that no block depends on what ran before it.
    cuda.empty_cache()
    cuda.reset_peak_memory_stats()
    seen = OnNullGpu(gpu=here, static_bytes=cuda.memory_allocated())
    try:
        yield seen
    finally:
        seen.end()
