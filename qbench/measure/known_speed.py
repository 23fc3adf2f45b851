"""What earlier calibrations say of the devices at hand."""

from __future__ import annotations

from qbench.records.calibration import (
    Calibration,
    find_calibration,
    gpu_calibrations,
    has_calibration,
    profiles,
)
from qbench.scenario.schema import Device


def usable_calibrations(device: Device) -> tuple[Calibration, ...]:
    """Return what is known of the speed of this CPU, or of GPUs: measured here, else the catalog's profiles.

    What was measured here with other libraries than the installed ones does not count. Raises RecordError
    for a damaged file.
    """
    if device == "cuda":
        own = tuple(found for found in gpu_calibrations() if found.is_current)
        return own + tuple(one for one in profiles() if one.device == "cuda")
    from qbench.measure.environment import machine  # A plan for a GPU needs none of it.

    name = str(machine("cpu")["device_name"])
    of_this = [one for one in profiles() if (one.device, one.device_name) == ("cpu", name)]
    if not of_this and not has_calibration("cpu", name):
        return ()
    import torch  # Only it knows how many threads it would take.

    num_threads = torch.get_num_threads()
    found = find_calibration("cpu", name, num_threads)
    if found is not None and found.is_current:
        return (found,)
    return tuple(one for one in of_this if one.num_threads == num_threads)
