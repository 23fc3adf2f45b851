"""How far processes of the same code differ: `qbench calibrate --noise`, and what `check` advises."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from qbench.cli.console import print_json, print_note, print_text
from qbench.errors import MeasureError, QbenchError

if TYPE_CHECKING:
    from qbench.compare.judgements import Tolerance
    from qbench.compare.regressions import Check, Finding
    from qbench.records.noise import Noise
    from qbench.records.record import Record
    from qbench.scenario.schema import Device, MeasureSettings, Point

NOTE_EVERY = 8
"""Processes between two notes of how far it is."""

GATE_TEXT = "`qbench gate SCENARIO --baseline REF` measures both sides next to each other until it is clear"


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
    from qbench.compare.noise import LEAST_PROCESSES, noise_of
    from qbench.measure.executors.local import LocalExecutor
    from qbench.measure.noise import POINT, SETTINGS, noise_records
    from qbench.records.noise import write_noise

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
            f"noise: fewer than {LEAST_PROCESSES} processes of {point.label} ended ok; take a smaller one"
        )
    file = write_noise(noise)
    if as_json:
        print_json({"file": str(file), **_document(noise)})
    else:
        _print(noise)
        print_text(f"{file}: written; gate takes its default budget from it")
    return 0


def advise(found: Check, run: Sequence[Record], tolerances: Mapping[str, Tolerance] | None = None) -> None:
    """Say on stderr what it takes to decide on step times that noise kept from it, where there are some.

    What `qbench calibrate --noise` knows of the machine goes before what these few processes show of it.
    """
    from qbench.compare.judgements import MIN_EFFECT
    from qbench.compare.noise import noise_text

    # A time without a number is not valid, which more processes would not change.
    hidden = [
        each
        for each in found.findings
        if each.metric == "step_time_s" and each.verdict == "ambiguous" and each.run is not None
    ]
    if not hidden:
        return
    known = _known_noise(hidden, run)
    for noise in known:
        print_note(noise_text(noise))
    if not known:
        # The tolerance of either speed holds for both.
        given = [(tolerances or {}).get(name) for name in ("step_time_s", "tokens_per_s")]
        min_effect = next((each.relative for each in given if each is not None), MIN_EFFECT)
        deviations = [each.deviation for each in hidden if each.deviation is not None]
        print_note(_wish_text(len(hidden), deviations, min_effect))
    calibrate = "" if known else "; `qbench calibrate --noise` says how many processes that takes here"
    print_note(f"{GATE_TEXT}{calibrate}.")


def _known_noise(hidden: Sequence[Finding], run: Sequence[Record]) -> list[Noise]:
    from qbench.records.noise import read_noise

    points = {finding.point for finding in hidden}
    measured = (record for record in run if record.kind == "measurement" and record.point in points)
    machines = {(record.device, record.environment.get("device_name")) for record in measured}
    known = (read_noise(device, machine) for device, machine in sorted(machines, key=str))
    return [noise for noise in known if noise is not None]


def _wish_text(count: int, deviations: Sequence[float], min_effect: float) -> str:
    """Return which changes how many processes a side show, by the one of `count` points that differs most."""
    from qbench.compare.intervals import ALIKE, LEAST_PROCESSES, MOST_PROCESSES, processes_needed, visible
    from qbench.compare.judgements import wanted_effect
    from qbench.compare.noise import EFFECTS

    start = f"step_time_s is ambiguous at {count} {'point' if count == 1 else 'points'}: "
    if not deviations:
        few = f"with fewer than {LEAST_PROCESSES} processes a side its noise is not known"
        return f"{start}{few} (measure.repeats, in both runs)."
    largest = max(deviations)
    start += f"{'its processes' if count == 1 else 'processes of one'} differ by {100 * largest:.1f} %. "
    effects = sorted({wanted_effect(min_effect), *(each for each in EFFECTS if each > min_effect)})
    needed = {effect: processes_needed(largest, effect, min_effect) for effect in effects}
    shown = [f"{100 * effect:.0f} %" for effect in effects]
    if not any(needed.values()):
        most = visible(ALIKE * largest * (2 / MOST_PROCESSES) ** 0.5, 2 * MOST_PROCESSES - 2, min_effect)
        return (
            f"{start}No affordable number of processes shows {' or '.join(shown)} by check: "
            f"{MOST_PROCESSES} a side would show {100 * most:.0f} %."
        )
    known = [(effect, number) for effect, number in zip(shown, needed.values(), strict=True) if number]
    first = f"To show a change of {known[0][0]}, check needs {known[0][1]} processes a side"
    rest = "".join(f"; {effect}: {number}" for effect, number in known[1:])
    lost = [effect for effect, number in zip(shown, needed.values(), strict=True) if not number]
    never = f"; no affordable number shows {' or '.join(lost)}" if lost else ""
    return f"{start}{first}{rest}{never} (measure.repeats, in both runs)."


def _first_point(scenario: str) -> tuple[Point, MeasureSettings]:
    from qbench.cli.target import read_scenario

    loaded, points = read_scenario(scenario, 10_000)
    return points[0], loaded.measure


def _print(noise: Noise) -> None:
    from qbench.compare.noise import noise_text

    for name, spread in noise.spreads.items():
        print_text(f"{name:<22} {100 * spread.process:6.2f} %  {100 * spread.pair:6.2f} % between neighbours")
    print_text(noise_text(noise))


def _document(noise: Noise) -> dict[str, object]:
    from qbench.compare.noise import proposals

    return {**asdict(noise), "proposals": [asdict(each) for each in proposals(noise)]}
