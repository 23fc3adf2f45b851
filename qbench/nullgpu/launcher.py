"""How a process comes to have the null GPU: the library is preloaded, and the card is in its environment."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Mapping
from pathlib import Path

from qbench.errors import QbenchError
from qbench.nullgpu.build import LIBRARY, shim_folder

DRIVER_FILE = Path("/dev/nvidiactl")
"""There where the NVIDIA driver is loaded; the shim looks for it, too."""
BESIDE_DRIVER = "NULLGPU_BESIDE_DRIVER"
"""Set to 1, the null GPU loads although the machine has a driver."""


def preload_environment(
    variables: Mapping[str, str] = os.environ, site: Path | None = None
) -> dict[str, str]:
    """Return the variables by which a process started with `variables` loads the shim before all else.

    `site` is the site-packages of the process's Python, where that is another one.

    Raises QbenchError where a driver answers and nobody asked for the null GPU beside it, or where the shim
    cannot be compiled.
    """
    if DRIVER_FILE.exists() and variables.get(BESIDE_DRIVER) != "1":
        raise QbenchError(
            f"this machine has an NVIDIA driver; measure with --device cuda, or set {BESIDE_DRIVER}=1"
        )
    folder = str(shim_folder(site))
    return {
        # A name that is found in LD_LIBRARY_PATH, since a path in LD_PRELOAD must not hold a space.
        "LD_PRELOAD": _joined(LIBRARY, variables.get("LD_PRELOAD")),
        "LD_LIBRARY_PATH": _joined(folder, variables.get("LD_LIBRARY_PATH")),
    }


def _joined(first: str, rest: str | None) -> str:
    others = [part for part in (rest or "").split(":") if part and part != first]
    return ":".join((first, *others))


@functools.cache
def is_loaded() -> bool:
    """Say whether CUDA in this process is the null GPU."""
    return hasattr(ctypes.CDLL(None), "nullgpu_is_here")
