"""Starts the agent of a dry run in a Python process, then the sitecustomize that Python would have run."""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

HERE = os.path.dirname(os.path.abspath(__file__))
AGENT = "qbench_agent"
"""Name of the agent's package in the process; the process need not have qbench."""


def _execute(spec: ModuleSpec | None) -> ModuleType | None:
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _start_agent() -> None:
    folder = os.path.join(os.path.dirname(HERE), "agent")
    file = os.path.join(folder, "__init__.py")
    agent = _execute(importlib.util.spec_from_file_location(AGENT, file, submodule_search_locations=[folder]))
    if agent is not None:
        agent.start()


if "QBENCH_DRYRUN_DIR" in os.environ and AGENT not in sys.modules:
    _start_agent()
_execute(PathFinder.find_spec("sitecustomize", [each for each in sys.path if os.path.abspath(each) != HERE]))
