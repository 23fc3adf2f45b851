"""qbench: memory planning and benchmarking of LoRA and QLoRA fine-tuning.

In Python and notebooks: `qbench.plan`, `qbench.load_run`, `qbench.compare`, `qbench.figures`. Nothing is
loaded before it is used.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_FUNCTIONS = ("figures", "load_run")
_PACKAGES = ("compare", "plan")


class CallablePackage(ModuleType):
    """A package that is also the function of its name in qbench.notebook.

    `qbench.plan` is the package to whoever imports from it, and importing it anywhere binds that name; so
    the package itself answers to a call, whatever was imported first.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function; see `qbench.notebook`."""
        function = getattr(import_module("qbench.notebook"), self.__name__.rpartition(".")[2])
        return function(*args, **kwargs)


def __dir__() -> list[str]:
    return sorted({*_PACKAGES, *_FUNCTIONS, *(name for name in globals() if name.startswith("__"))})


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"qbench.{name}")
    if name in _FUNCTIONS:
        return getattr(import_module("qbench.notebook"), name)
    raise AttributeError(f"module 'qbench' has no attribute {name!r}")
