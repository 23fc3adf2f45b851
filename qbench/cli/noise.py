"""How far processes of the same code differ: `qbench calibrate --noise`, and what `check` advises."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from qbench.cli.console import print_json, print_note, print_text
from qbench.errors import MeasureError, QbenchError

if TYPE_CHECKING:
    from qbench.comparison.check import Check, Finding
    from qbench.comparison.verdicts import Tolerance
    from qbench.records.noise import Noise
    from qbench.records.record import Record
    from qbench.scenario.schema import Device, MeasureSettings, Point

NOTE_EVERY = 8
"""Processes between two notes of how far it is."""


def calibrate_noise(
    device: Device,
    *,
    scenario: str | None = None,
    processes: int,
    as_json: bool = False,
) -> int:
    """Measure one point in many processes, store how far they differ, and print what that asks for.

    `scenario` names one whose first point is taken in place of a tiny one. Raises MeasureError when too few
    processes end ok.
    """
    from qbench.comparison.noise import LEAST_PROCESSES, noise_of
    from qbench.measure.executors.local import LocalExecutor
    from qbench.records.noise import write_noise
    from qbench.runs.noise import POINT, SETTINGS, noise_records

    if processes < LEAST_PROCESSES:
        raise QbenchError(f"--processes: given {processes}; allowed: {LEAST_PROCESSES} or more")
    point, settings = (POINT, SETTINGS) if scenario is None else _first_point(scenario)
    print_note(f"noise: {processes} processes of {point.label} on {device}")
    records: list[Record] = []
    start = time.monotonic()
    for record in noise_records(device, LocalExecutor(), point=point, settings=settings, processes=processes):
        records.append(record)
        if len(records) % NOTE_EVERY == 0 and len(records) < processes:
            left = (time.monotonic() - start) / len(records) * (processes - len(records))
            print_note(f"    {len(records)} of {processes} ({left:.0f} s left)")
        if record.outcome != "ok":
            print_note(f"    process {len(records)} ended in {record.outcome}")
    noise = noise_of(records)
    if noise is None:
        raise MeasureError(
            f"noise: fewer than {LEAST_PROCESSES} processes of {point.label} ended ok; use a smaller scenario"
        )
    file = write_noise(noise)
    if as_json:
        print_json({"file": str(file), **_document(noise)})
    else:
        _print(noise)
        print_text(f"{file}: written; gate uses it for its default budget")
    return 0


def advise(found: Check, run: Sequence[Record], tolerances: Mapping[str, Tolerance]) -> None:
    """Say on stderr what it takes to decide on step times that noise kept from it, where there are some."""
    from qbench.comparison.noise import undecided_speeds
    from qbench.words.noise import advice

    undecided = undecided_speeds(found)
    if undecided:
        for line in advice(undecided, _known_noise(undecided, run), tolerances):
            print_note(line)


def _known_noise(undecided: Sequence[Finding], run: Sequence[Record]) -> list[Noise]:
    """Return what is known of the machines that measured the points."""
    from qbench.records.noise import read_noise

    points = {finding.point for finding in undecided}
    measured = (record for record in run if record.kind == "measurement" and record.point in points)
    machines = {(record.device, record.device_name) for record in measured}
    known = (read_noise(device, machine) for device, machine in sorted(machines, key=str))
    return [noise for noise in known if noise is not None]


def _first_point(scenario: str) -> tuple[Point, MeasureSettings]:
    from qbench.cli.target import read_scenario

    loaded, points = read_scenario(scenario, 10_000)
    return points[0], loaded.measure


def _print(noise: Noise) -> None:
    from qbench.words.noise import noise_text

    for name, spread in noise.spreads.items():
        print_text(f"{name:<22} {100 * spread.process:6.2f} %  {100 * spread.pair:6.2f} % between neighbours")
    print_text(noise_text(noise))


def _document(noise: Noise) -> dict[str, object]:
    from qbench.comparison.noise import proposals

    return {**asdict(noise), "proposals": [asdict(each) for each in proposals(noise)]}
