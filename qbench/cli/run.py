"""`qbench run`: plan and measure a scenario into a run folder."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qbench.cli.console import print_error, print_text

if TYPE_CHECKING:
    from qbench.scenario.schema import Device, Point, Scenario


class DeviceChoice(str, Enum):
    """Where to measure."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class ExecutorName(str, Enum):
    """Who runs the points."""

    local = "local"


def run_command(
    scenario: Annotated[str, typer.Argument(help="Scenario file, or the file name of a shipped one.")],
    device: Annotated[
        DeviceChoice, typer.Option(help="auto takes CUDA where there is a GPU.")
    ] = DeviceChoice.auto,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/NAME.")] = None,
    executor: Annotated[ExecutorName, typer.Option(help="Who runs the points.")] = ExecutorName.local,
    max_points: Annotated[int, typer.Option(help="Refuse a scenario with more points.")] = 10_000,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what would run and why, and run nothing.")
    ] = False,
) -> int:
    """Plan and measure each point of a scenario.

    What is finished in the run folder, with the same code, versions and machine, is not done again.
    """
    from qbench.cli.target import read_scenario

    loaded, points = read_scenario(scenario, max_points)
    folder = out or Path("runs") / loaded.name
    _check_names(loaded, points)
    chosen = _device(device)
    if explain:
        return _explain(loaded, points, folder, chosen)
    return _run(loaded, points, folder, chosen)


def _check_names(scenario: Scenario, points: tuple[Point, ...]) -> None:
    """Tell an unknown GPU or model before anything is run; raises CatalogError."""
    from qbench.catalog.gpus import find_gpu
    from qbench.catalog.models import resolve_model

    for gpu in scenario.plan.gpus:
        find_gpu(gpu)
    for model in dict.fromkeys(point.model for point in points):
        resolve_model(model)


def _device(choice: DeviceChoice) -> Device:
    from qbench.errors import QbenchError
    from qbench.measure import nvml

    if choice is DeviceChoice.cpu:
        return "cpu"
    if nvml.cuda_present():
        return "cuda"
    if choice is DeviceChoice.cuda:
        raise QbenchError("--device cuda: the NVIDIA driver shows no GPU here; use --device cpu or auto")
    return "cpu"


def _explain(scenario: Scenario, points: tuple[Point, ...], folder: Path, device: Device) -> int:
    from qbench.cli.progress import job_text
    from qbench.sweep import reasons

    jobs = reasons(scenario, points, folder, device)
    to_run = [(job, reason) for job, reason in jobs if reason is not None]
    for job, reason in to_run:
        print_text(f"{job_text(job)}: {reason}")
    print_text(f"{folder}: {len(to_run)} of {len(jobs)} would run, {len(jobs) - len(to_run)} are finished")
    return 0


def _run(scenario: Scenario, points: tuple[Point, ...], folder: Path, device: Device) -> int:
    from qbench.cli.progress import shown_progress
    from qbench.measure.executors.local import LocalExecutor
    from qbench.sweep import run_scenario

    with shown_progress(f"{scenario.name}: {len(points)} points on {device} into {folder}") as watch:
        done = run_scenario(scenario, points, folder, device, LocalExecutor(), watch)
    if done.notice:
        print_error(done.notice)
    endings = ", ".join(f"{count} {outcome}" for outcome, count in sorted(done.outcomes.items()))
    kept = f"; {done.kept} were there already" if done.kept else ""
    print_text(f"{folder}: {done.done} results ({endings or 'nothing to do'}{kept})")
    if set(done.outcomes) == {"error"} and not done.kept:
        return 2  # Not one point could even be planned: that is bad input, told with each point.
    return 0 if set(done.outcomes) <= {"ok", "oom"} else 3
