"""Imported once by a fork server, so that a planning process starts with the libraries."""

from __future__ import annotations

import gc
import os

from qbench.quick_imports import quick_imports
from qbench.quiet import quiet_libraries

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # bitsandbytes asks CUDA for the device on import.
quiet_libraries()
with quick_imports():
    import qbench.planner.plan
    import qbench.step.training_step  # noqa: F401
gc.freeze()
