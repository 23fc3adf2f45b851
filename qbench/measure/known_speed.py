"""What earlier calibrations say of the devices at hand."""

from __future__ import annotations

from qbench.measure.environment import machine
from qbench.records.calibration import Calibration, find_calibration, gpu_calibrations, has_calibration
from qbench.scenario.schema import Device


def usable_calibrations(device: Device) -> tuple[Calibration, ...]:
    """Return what was measured of the speed of this CPU, or of GPUs, with the libraries that are installed.

    Raises RecordError for a damaged file.
    """
    if device == "cuda":
        return tuple(found for found in gpu_calibrations() if found.is_current)
    name = str(machine("cpu")["device_name"])
    if not has_calibration("cpu", name):
        return ()
    import torch  # Only it knows how many threads it would take.

    found = find_calibration("cpu", name, torch.get_num_threads())
    return () if found is None or not found.is_current else (found,)
