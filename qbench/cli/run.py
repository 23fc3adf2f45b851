"""`qbench run`: plan and measure a scenario into a run folder."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from qbench.cli.console import print_note, print_text
from qbench.cli.target import scenario_path


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
) -> int:
    """Plan and measure each point of a scenario; what is finished in the folder is not done again."""
    from qbench.scenario.expand import expand
    from qbench.scenario.load import load_scenario

    loaded = load_scenario(scenario_path(scenario), max_points)
    points = expand(loaded, max_points)
    folder = out or Path("runs") / loaded.name

    from qbench.cli.progress import progress_bar
    from qbench.measure import nvml
    from qbench.measure.executors.local import LocalExecutor
    from qbench.sweep import run_scenario

    chosen = device.value
    if chosen == "auto":
        chosen = "cuda" if nvml.cuda_present() else "cpu"
    print_note(f"{loaded.name}: {len(points)} points on {chosen} into {folder}")
    with progress_bar() as on_job:
        done = run_scenario(loaded, points, folder, chosen, LocalExecutor(), on_job)  # type: ignore[arg-type]
    endings = ", ".join(f"{count} {outcome}" for outcome, count in sorted(done.outcomes.items()))
    kept = f"; {done.kept} were there already" if done.kept else ""
    print_text(f"{folder}: {done.done} results ({endings or 'nothing to do'}{kept})")
    return 0 if set(done.outcomes) <= {"ok", "oom"} else 3
