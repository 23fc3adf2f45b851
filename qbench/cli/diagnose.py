"""`qbench run --memory-snapshot --profile`: a rerun of each point, for inspection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qbench.cli.console import print_error, print_note

if TYPE_CHECKING:
    from qbench.measure.diagnostics import Diagnostics
    from qbench.measure.runner import Executor
    from qbench.scenario.schema import Device, Point


def diagnose_points(
    points: tuple[Point, ...],
    device: Device,
    folder: Path,
    wanted: Diagnostics,
    executor: Executor,
    timeout_s: float,
) -> None:
    """Make the diagnostics of each point and say where they are; one that fails is reported and skipped."""
    from qbench.cli.progress import ending
    from qbench.measure.diagnostics import diagnose

    for number, point in enumerate(points, start=1):
        print_note(f"[{number}/{len(points)}] diagnose {point.label}")
        done = diagnose(point, device, folder, wanted, executor, timeout_s)
        for file in done.files:
            print_note(f"    {file}")
        if done.outcome != "ok":
            print_error(f"no full diagnostics of {point.label}: {ending(done)}")
