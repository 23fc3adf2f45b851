"""`qbench calibrate`: time this device's kernels, so that plans know how long steps on it take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qbench.cli.console import print_json, print_note, print_text

if TYPE_CHECKING:
    from qbench.records.calibration import Calibration
    from qbench.scenario.schema import Device


def calibrate_speed(device: Device, *, as_json: bool = False) -> int:
    """Time the device's kernels, store the times, and print where they are and what is fastest."""
    from qbench.measure.calibrate import ROUNDS, calibrate
    from qbench.records.calibration import describe, write_calibration

    print_note(f"calibrating {device}: about a minute; leave the machine alone meanwhile")
    found = calibrate(device, lambda number: print_note(f"  round {number + 1} of {ROUNDS}"))
    file = write_calibration(found)
    if as_json:
        print_json({"file": str(file), **describe(found), "rates": _rates(found)})
        return 0
    threads = "" if found.num_threads is None else f", {found.num_threads} thread(s)"
    print_text(f"{found.device_name}{threads}")
    for name, (value, unit) in _rates(found).items():
        print_text(f"  {name:<24} {value:>10.3g} {unit}")
    print_text(f"{file}: written; plans for this device take their step times from it")
    return 0


def _rates(found: Calibration) -> dict[str, tuple[float, str]]:
    """Return the best that was seen of each kind of kernel, and what an operator costs the host."""
    best: dict[str, tuple[float, str]] = {}
    for timed in found.kernels:
        if timed.flops:
            name, rate, unit = f"{timed.op} {timed.dtype}", timed.flops / timed.seconds / 1e9, "GFLOP/s"
        elif timed.op in ("clone", "add", "dequantize_4bit"):
            name, rate, unit = f"{timed.op} {timed.dtype}", timed.num_bytes / timed.seconds / 1e9, "GB/s"
        else:
            continue
        best[name] = max(best.get(name, (0.0, unit)), (rate, unit))
    host = {f"host, {phase}": (1e6 * value, "us/operator") for phase, value in found.dispatch_s.items()}
    return best | host
