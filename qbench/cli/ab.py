"""`qbench ab`: the same scenario in two Python environments, against each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qbench.cli import options
from qbench.cli.console import print_error, print_json, print_note, print_sentence, print_table, print_text
from qbench.cli.run import DeviceChoice, check_names, chosen_device
from qbench.errors import QbenchError

if TYPE_CHECKING:
    from qbench.comparison.environments import PointChange
    from qbench.records.record import Record
    from qbench.runs.pairs import Sides, Turn
    from qbench.scenario.schema import Device, Scenario

POINT_FAILED = 3


What = Annotated[
    list[str],
    typer.Argument(help="Scenario file, or after -- a training command, which is run as by dryrun."),
]
PythonA = Annotated[str, typer.Option("--a", help="Python of the first environment: .venv-old/bin/python")]
PythonB = Annotated[str, typer.Option("--b", help="Python of the second environment.")]
AutoDevice = Annotated[
    DeviceChoice, typer.Option(help="auto uses CUDA if there is a GPU; plans are for CUDA.")
]
Out = Annotated[Path | None, typer.Option(help="Folder for the run folders a and b; default runs/NAME-ab.")]
Repeats = Annotated[
    int | None, typer.Option(help="Processes for each point and environment, instead of the scenario's.")
]
NullGpu = Annotated[str, typer.Option(help="Null GPU of a training command [default: H200 SXM].")]
PlanOnly = Annotated[bool, typer.Option("--plan-only", help="Compare plans: takes seconds and needs no GPU.")]


def ab_command(
    what: What,
    a: PythonA,
    b: PythonB,
    device: AutoDevice = DeviceChoice.auto,
    out: Out = None,
    repeats: Repeats = None,
    gpu: NullGpu = "",
    plan_only: PlanOnly = False,
    max_points: options.MaxPoints = 10_000,
    as_json: options.AsJson = False,
) -> int:
    """Compare two environments, for example before and after an upgrade of torch or peft.

    Points are measured in the order A B B A, each in a fresh process. This is a report, not a gate: the exit
    code is 0 whatever differs, and 3 if a point could not be measured. A training command runs once in each
    environment, on a null GPU.
    """
    if len(what) > 1 or what[0].endswith((".py", ".sh")):
        from qbench.cli.ab_program import compare_program

        return compare_program(what, a, b, gpu, out, as_json)
    (scenario,) = what
    if gpu:
        raise QbenchError("--gpu is for a training command after --; a scenario names cards in plan.gpus")
    from qbench.cli.target import read_scenario, scenario_path
    from qbench.runs.pairs import Pairing, compare, compare_plans, environments

    loaded, points = read_scenario(scenario, max_points)
    loaded = _with_repeats(loaded, repeats)
    check_names(loaded, points)
    sides = environments(a, b)
    if plan_only:
        chosen: Device = "cpu" if device is DeviceChoice.cpu else "cuda"
        changes = compare_plans(loaded.name, scenario_path(scenario), sides, chosen, out)
    else:
        folder = out or Path("runs") / f"{loaded.name}-ab"
        chosen = chosen_device(device)
        total = 2 * len(points) * loaded.measure.repeats
        asked = Pairing(
            scenario=loaded,
            points=points,
            sides=sides,
            device=chosen,
            folder=folder,
            watch=lambda turn, record: watch_turn(
                turn, record, f"[{turn.number}/{total}] {turn.side.name.upper()}"
            ),
        )
        changes = compare(asked)
    if as_json:
        print_json(_document(sides, changes))
    else:
        _print(sides, changes, chosen)
    return _exit_code(changes)


def _with_repeats(scenario: Scenario, repeats: int | None) -> Scenario:
    from qbench.errors import ScenarioError

    if repeats is None:
        return scenario
    if repeats < 1:
        raise ScenarioError(f"--repeats: given {repeats}; allowed: a whole number of at least 1")
    settings = scenario.measure.model_copy(update={"repeats": repeats})
    return scenario.model_copy(update={"measure": settings})


def watch_turn(turn: Turn, record: Record | None, begins: str) -> None:
    """Print a measurement of a pair when it begins, and its ending when that is not ok."""
    from qbench.cli.progress import ending

    if record is None:
        print_note(f"{begins} #{turn.repeat + 1} {turn.point.label}")
    elif record.outcome != "ok":
        print_note(f"    {ending(record)}")


def _print(sides: Sides, changes: list[PointChange], device: Device) -> None:
    from qbench.report.environments import packages_table, point_table, point_title, summary_lines

    for side in sides:
        name, python = side.name.upper(), side.interpreter
        print_text(f"{name}  {python.path} (Python {python.python}, qbench {python.code_id})")
    if sides.packages:
        print_table(packages_table(sides.packages))
    else:
        print_text("All installed packages have the same version, and torch and its libraries the same code.")
    if not sides.same_code:
        print_error("the environments run different qbench code, so a difference may come from qbench itself")
    for change in changes:
        print_sentence(f"{point_title(change)}; {device}")
        print_table(point_table(change))
    for sentence in summary_lines(changes):
        print_sentence(sentence)


def _document(sides: Sides, changes: list[PointChange]) -> dict[str, Any]:
    from qbench.report.environments import as_json, summary_lines

    return {
        "environments": {
            side.name: {name: getattr(side.interpreter, name) for name in ("path", "python", "code_id")}
            for side in sides
        },
        "same_code": sides.same_code,
        "packages": [dict(zip(("name", "a", "b"), change, strict=True)) for change in sides.packages],
        "points": as_json(changes),
        "summary": summary_lines(changes),
    }


def _exit_code(changes: list[PointChange]) -> int:
    outcomes = {record.outcome for change in changes for record in change.a + change.b}
    return 0 if outcomes <= {"ok", "oom"} else POINT_FAILED
