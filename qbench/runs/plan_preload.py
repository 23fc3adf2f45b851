"""Imported once by a fork server, so that a planning process starts with the libraries."""

from __future__ import annotations

import gc
import os

from qbench.quick_imports import quick_imports
from qbench.quiet import quiet_libraries
from qbench.records.software import software

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # bitsandbytes asks CUDA for the device on import.
quiet_libraries()
with quick_imports():
    import qbench.planner.plan
    import qbench.step.training_step  # noqa: F401
# Code and versions are those that the server has imported, whatever is written to the disk later.
software()
gc.freeze()
