"""Variables of the process that move memory or speed, taken from one machine to another."""

from __future__ import annotations

import os
from collections.abc import Mapping

from qbench.measure.environment import environment


def take_settings(settings: Mapping[str, str]) -> None:
    """Give this process, and those that it will start, the settings of a record's environment, and no others.

    What starts a process elsewhere may set some of its own: Ray and Slurm set OMP_NUM_THREADS.
    """
    for name in environment("cpu")["settings"]:
        del os.environ[name]
    os.environ.update(settings)
