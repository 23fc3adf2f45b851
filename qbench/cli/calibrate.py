"""`qbench calibrate`: measure what this machine itself is like, once, for plans and gates."""

from __future__ import annotations

from typing import Annotated

import typer

from qbench.cli.run import DeviceChoice, chosen_device

NOISE_PROCESSES = 48
"""Half as many pairs; a minute or two where a process takes two seconds."""


def calibrate_command(
    noise: Annotated[
        bool, typer.Option("--noise", help="Measure how far processes of the same code differ.")
    ] = False,
    scenario: Annotated[
        str | None, typer.Option(help="With --noise: take the first point of this one, not a tiny one.")
    ] = None,
    processes: Annotated[int, typer.Option(help="With --noise: how many to measure.")] = NOISE_PROCESSES,
    device: Annotated[
        DeviceChoice, typer.Option(help="auto takes CUDA where there is a GPU.")
    ] = DeviceChoice.auto,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Measure this machine; the result goes to the settings folder (QBENCH_CONFIG_DIR).

    Without flags: how fast its kernels are, in about a minute, which plans take their step times from. On the
    CPU that speaks for the number of threads that torch has (OMP_NUM_THREADS).

    --noise: the spread over processes, and how many of them show a change of speed; `gate` takes its default
    budget from it.
    """
    from qbench.cli.noise import calibrate_noise
    from qbench.cli.speed import calibrate_speed

    if not noise:
        return calibrate_speed(chosen_device(device), as_json=as_json)
    return calibrate_noise(chosen_device(device), scenario=scenario, processes=processes, as_json=as_json)
