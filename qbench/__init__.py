"""qbench: memory planning and benchmarking of LoRA and QLoRA fine-tuning.

In Python and notebooks: `qbench.plan`, `fit`, `rank`, `load_run`, `compare`, `figures`; they give
`Record`s of `Point`s, and `Fit`s of cards. `with qbench.null_gpu(NAME):` watches memory on a null GPU.
Nothing is loaded before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from qbench.version import __version__

__all__ = [
    "Fit",
    "Point",
    "Record",
    "__version__",
    "compare",
    "figures",
    "fit",
    "load_run",
    "null_gpu",
    "plan",
    "rank",
]

_HOMES = {
    "Fit": "qbench.records.fits",
    "Point": "qbench.scenario.schema",
    "Record": "qbench.records.record",
    "compare": "qbench.notebook_results",
    "figures": "qbench.notebook_results",
    "fit": "qbench.notebook",
    "load_run": "qbench.notebook",
    "null_gpu": "qbench.dryrun.in_process",
    "plan": "qbench.notebook",
    "rank": "qbench.notebook",
}


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qbench' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
