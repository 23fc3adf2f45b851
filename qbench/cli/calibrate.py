"""`qbench calibrate`: measure what this machine itself is like, once, for plans and gates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qbench.cli import options
from qbench.cli.console import print_json, print_note, print_text
from qbench.cli.run import DeviceChoice, MeasuredOn, chosen_device
from qbench.errors import QbenchError

if TYPE_CHECKING:
    from qbench.records.calibration import Calibration
    from qbench.scenario.schema import Device

NOISE_PROCESSES = 48
"""Half as many pairs; a minute or two where a process takes two seconds."""


def calibrate_command(
    noise: Annotated[
        bool, typer.Option("--noise", help="Measure how far processes of the same code differ.")
    ] = False,
    scenario: Annotated[
        str | None,
        typer.Option(help="With --noise: measure the first point of this scenario instead of a tiny one."),
    ] = None,
    processes: Annotated[
        int, typer.Option(help="With --noise: number of processes to measure.")
    ] = NOISE_PROCESSES,
    device: MeasuredOn = DeviceChoice.auto,
    export: Annotated[
        Path | None,
        typer.Option(help="Also write the rates to this file, as qbench/catalog/data/profiles keeps them."),
    ] = None,
    as_json: options.AsJson = False,
) -> int:
    """Measure the rates of this machine and store them in the settings folder (QBENCH_CONFIG_DIR).

    Without flags, times its kernels in about a minute; plans use the result for step times. On the CPU it
    holds for the current number of torch's threads (OMP_NUM_THREADS). With one thread, CPU time is counted,
    which others on the machine affect least.

    --noise measures the spread over processes, and how many it takes to show a change of speed; `gate` uses
    that for its default budget.
    """
    from qbench.cli.noise import calibrate_noise

    if not noise:
        return _calibrate_speed(chosen_device(device), export, as_json=as_json)
    if export is not None:
        raise QbenchError("--export is for rates of kernels; omit --noise")
    return calibrate_noise(chosen_device(device), scenario=scenario, processes=processes, as_json=as_json)


def _calibrate_speed(device: Device, export: Path | None = None, *, as_json: bool) -> int:
    """Time the device's kernels, store the times, and print where they are and what is fastest."""
    from qbench.measure import nvml

    if device == "cuda":
        # Else torch would time its fastest card, and NVML name the first by PCI bus. Before all imports:
        # bitsandbytes starts CUDA, which then keeps the cards that it has seen.
        nvml.pin_device()
    from qbench.measure.calibrate import calibrate
    from qbench.records.calibration import describe, export_calibration, write_calibration

    print_note(f"calibrating {device}: takes about a minute; keep the machine idle")
    found = calibrate(device, lambda number: print_note(f"  round {number + 1}"))
    file = write_calibration(found)
    if not found.is_quiet:
        print_note(
            f"the machine was not quiet: other processes kept {found.others_busy_cpus:.1f} CPUs busy; "
            "calibrate again when it is idle"
        )
    if export is not None:
        export_calibration(found, export)
    if as_json:
        print_json({"file": str(file), **describe(found), "rates": _rates(found)})
        return 0
    threads = "" if found.num_threads is None else f", {found.num_threads} thread(s)"
    print_text(f"{found.device_name}{threads}")
    for name, (value, unit) in _rates(found).items():
        print_text(f"  {name:<24} {value:>10.3g} {unit}")
    print_text(f"{file}: written; plans for this device use it for step times")
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
