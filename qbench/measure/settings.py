"""Variables of the process that affect memory or speed, taken from one machine to another."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from qbench.errors import MeasureError
from qbench.measure.environment import SETTINGS, process_settings

LONGEST_VALUE = 1000
_VALUE = re.compile(r"[A-Za-z0-9_.,:;>\[\]+ -]*", re.ASCII)
"""What the values of these variables are written with: options, sizes and counts, never a path."""


def setting_problem(name: str, value: str) -> str | None:
    """Return why a variable is not set for a measurement, None where it may be.

    A request comes from elsewhere. Other variables decide what code runs: PYTHONPATH, LD_PRELOAD.
    """
    if name not in SETTINGS:
        return f"not a setting that qbench takes; allowed: {', '.join(SETTINGS)}"
    if len(value) > LONGEST_VALUE or _VALUE.fullmatch(value) is None:
        return f"allowed: at most {LONGEST_VALUE} letters, digits, spaces and _ . , : ; > [ ] + -"
    return None


def take_settings(settings: Mapping[str, str]) -> None:
    """Give this process, and those that it will start, the settings of a record's environment, and no others.

    What starts a process elsewhere may set some of its own: Ray and Slurm set OMP_NUM_THREADS. Raises
    MeasureError, and changes nothing, when one of them is not to be set.
    """
    for name, value in settings.items():
        problem = setting_problem(name, value)
        if problem is not None:
            raise MeasureError(f"settings.{name}: {problem}")
    for name in process_settings():
        del os.environ[name]
    os.environ.update(settings)
