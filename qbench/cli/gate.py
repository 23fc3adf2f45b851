"""`qbench gate`: this code against another, measured side by side until it is clear."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qbench.cli import options
from qbench.cli.ab import watch_turn
from qbench.cli.ci_outputs import (
    Annotations,
    AnnotationsOption,
    JunitOption,
    Outputs,
    SarifOption,
    SummaryOption,
    tell,
)
from qbench.cli.run import DeviceChoice, MeasuredOn, check_names, chosen_device
from qbench.errors import QbenchError

if TYPE_CHECKING:
    from qbench.records.record import Record
    from qbench.runs.pairs import Budget, Turn
    from qbench.scenario.schema import Device

DEFAULT_PROCESSES = 100
"""A side, where this machine's noise is not known."""
DEFAULT_SECONDS = 1800.0

_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600}


TimeBudget = Annotated[
    str | None, typer.Option(help="Time for all points, for example 2h or 90s; default 30m.")
]
MaxProcesses = Annotated[
    int | None,
    typer.Option(
        help="Maximum processes per side and point; default 100, or what calibrate --noise proposes."
    ),
]
MemoryTolerance = Annotated[
    list[str] | None, typer.Option(help="METRIC=1% or METRIC=8MiB for memory; can be repeated.")
]
MinEffect = Annotated[str, typer.Option(help="Smallest relevant change of speed, for example 3%.")]


def gate_command(
    scenario: options.ScenarioName,
    baseline: Annotated[
        str,
        typer.Option(help="Git ref of this repository (main, HEAD~1), or path of another Python."),
    ],
    budget: TimeBudget = None,
    max_processes: MaxProcesses = None,
    tolerance: MemoryTolerance = None,
    min_effect: MinEffect = "3%",
    device: MeasuredOn = DeviceChoice.auto,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the runs baseline and run; default runs/NAME-gate.")
    ] = None,
    max_points: options.MaxPoints = 10_000,
    strict: Annotated[
        bool, typer.Option("--strict", help="Also fail on points that stay ambiguous.")
    ] = False,
    summary: SummaryOption = None,
    junit: JunitOption = None,
    sarif: SarifOption = None,
    annotations: AnnotationsOption = Annotations.none,
    as_json: options.AsJson = False,
) -> int:
    """Measure this code and a baseline in turn until each point is decided or the budget is used up.

    Exit 1 if it got worse, 2 if they cannot be compared. Points that the budget does not decide are undecided
    and pass unless --strict is given. Parameters, modules and memory are judged as by `qbench check`.
    """
    from qbench.cli.target import read_scenario
    from qbench.comparison.tolerances import parse_tolerance
    from qbench.runs.pairs import Pairing, baseline_and_run, gate
    from qbench.words.noise import deciding_budget

    smallest, seconds = _share(min_effect), None if budget is None else _seconds(budget)
    _check_processes(max_processes)
    tolerances = dict(parse_tolerance(text) for text in tolerance or [])
    loaded, points = read_scenario(scenario, max_points)
    check_names(loaded, points)
    chosen, folder = chosen_device(device), out or Path("runs") / f"{loaded.name}-gate"
    spent, turns = _budget(seconds, max_processes, chosen), _Turns()
    with baseline_and_run(baseline, Path.cwd()) as both:
        asked = Pairing(
            scenario=loaded, points=points, sides=both, device=chosen, folder=folder, watch=turns.watch
        )
        found = gate(asked, spent, tolerances=tolerances, min_effect=smallest)
    code, advice = found.exit_code(strict), tuple(deciding_budget(found, turns.pair_s))
    files = Outputs(as_json=as_json, summary=summary, junit=junit, sarif=sarif, annotations=annotations)
    outputs = replace(files, verb="gate", advice=advice)
    tell(found, code, outputs, places=folder / "baseline", strict=strict)
    return code


class _Turns:
    """Prints each measurement, and knows what a pair of them took."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._pairs = 0.0

    def watch(self, turn: Turn, record: Record | None) -> None:
        """Print a measurement that begins or has ended."""
        watch_turn(turn, record, f"[{turn.open_points} undecided] {turn.side.name}")
        self._pairs = turn.number / 2

    @property
    def pair_s(self) -> float:
        """Seconds of a pair, the libraries' start in it."""
        return (time.monotonic() - self._begun) / max(self._pairs, 1.0)


def _share(text: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    if match is None or not 0 < float(match[1]) < 100:
        raise QbenchError(f"--min-effect: given {text!r}; must be between 0% and 100%, for example 3%")
    return float(match[1]) / 100


def _check_processes(given: int | None) -> None:
    from qbench.comparison.sequential import FIRST_LOOK, MOST_PAIRS

    if given is not None and not FIRST_LOOK <= given <= MOST_PAIRS:
        raise QbenchError(f"--max-processes: given {given}; allowed: {FIRST_LOOK} to {MOST_PAIRS} per side")


def _budget(seconds: float | None, processes: int | None, device: Device) -> Budget:
    """Return the budget; a limit that is given alone is the only one."""
    from qbench.comparison.sequential import MOST_PAIRS
    from qbench.runs.pairs import Budget

    if seconds is not None:
        return Budget(pairs=processes or MOST_PAIRS, seconds=seconds)
    if processes is not None:
        return Budget(pairs=processes)
    return Budget(pairs=_proposed(device) or DEFAULT_PROCESSES, seconds=DEFAULT_SECONDS)


def _proposed(device: Device) -> int | None:
    """Return the processes per side that show WANTED_EFFECT on this machine, or the most where none do.

    None where its noise was not measured.
    """
    from qbench.comparison.noise import proposals
    from qbench.comparison.sequential import MOST_PAIRS
    from qbench.comparison.verdicts import WANTED_EFFECT
    from qbench.measure.environment import machine
    from qbench.records.noise import read_noise

    noise = read_noise(device, machine(device)["device_name"])
    wished = proposals(noise) if noise is not None else []
    return next((each.gate or MOST_PAIRS for each in wished if each.effect == WANTED_EFFECT), None)


def _seconds(text: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h)\s*", text)
    if match is None or float(match[1]) == 0:
        raise QbenchError(f"--budget: given {text!r}; allowed: a duration, for example 90s, 30m or 2h")
    return float(match[1]) * _SECONDS[match[2]]
