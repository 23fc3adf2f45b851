"""`qbench run`: plan and measure a scenario into a run folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qbench.cli import options
from qbench.cli.console import print_error, print_json, print_text
from qbench.cli.null_gpu import CudaPython, NullGpus, RunDeviceChoice, Where, null_cards

if TYPE_CHECKING:
    from qbench.measure.runner import Executor
    from qbench.scenario.schema import Device, Point, RunDevice, Scenario


class DeviceChoice(str, Enum):
    """Where to measure."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class ExecutorName(str, Enum):
    """Who runs the points."""

    local = "local"
    ray = "ray"


ELSEWHERE = "machines that this one does not see; say --device cuda or --device cpu"


MeasuredOn = Annotated[DeviceChoice, typer.Option(help="auto uses CUDA if there is a GPU.")]
MemorySnapshot = Annotated[
    bool,
    typer.Option(
        "--memory-snapshot", help="Afterwards, run each point once more for PyTorch's memory visualizer."
    ),
]
Profile = Annotated[
    bool, typer.Option("--profile", help="Afterwards, run each point once more under torch.profiler.")
]


def run_command(
    scenario: options.ScenarioName,
    device: Where = RunDeviceChoice.auto,
    gpu: NullGpus = None,
    python: CudaPython = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/NAME.")] = None,
    executor: Annotated[
        ExecutorName, typer.Option(help="Who measures the points: this machine, or Ray.")
    ] = ExecutorName.local,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster: HOST:PORT or auto; default: start Ray on this machine.")
    ] = None,
    gpus_per_point: Annotated[
        int | None,
        typer.Option(
            help="GPUs that each point reserves under Ray; default: as many as the largest point trains on."
        ),
    ] = None,
    points_folder: Annotated[
        Path | None,
        typer.Option(
            "--points",
            help="Measure nothing: read the results of `run-point` from this folder, and write a file "
            "for each measurement still to be made.",
        ),
    ] = None,
    max_points: options.MaxPoints = 10_000,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show what would run and why, without running it.")
    ] = False,
    memory_snapshot: MemorySnapshot = False,
    profile: Profile = False,
    as_json: options.AsJson = False,
) -> int:
    """Plan and measure each point of a scenario.

    Points that are finished in the run folder with the same code, versions and machine are skipped. With
    --address or --points, all machines count as the same.
    """
    _check_flags(executor, device, address, gpus_per_point, points_folder)
    _check_diagnostics(memory_snapshot or profile, executor, points_folder)
    others = memory_snapshot or profile or points_folder is not None
    cards = null_cards(device is RunDeviceChoice.null, gpu, python, others)
    from qbench.cli.target import read_scenario

    loaded, points = read_scenario(scenario, max_points)
    folder = out or Path("runs") / loaded.name
    check_names(loaded, points)
    any_machine = address is not None or points_folder is not None
    chosen = _device(device, elsewhere=any_machine)
    if explain:
        return _explain(loaded, points, folder, chosen, cards, any_machine, as_json)
    if points_folder is not None:
        assert chosen != "null"
        return _exchange(loaded, points, folder, chosen, points_folder, as_json)
    with _executor(executor, chosen, address, gpus_per_point or most_gpus(points)) as runs_on:
        code = _run(loaded, points, folder, chosen, cards, runs_on, any_machine, as_json)
        if (memory_snapshot or profile) and chosen != "null":
            _diagnose(loaded, points, folder, chosen, runs_on, (memory_snapshot, profile))
        return code


def _check_diagnostics(wanted: bool, executor: ExecutorName, points_folder: Path | None) -> None:
    """Refuse diagnostics where points run elsewhere, since their files are written there."""
    from qbench.errors import QbenchError

    if wanted and (executor is not ExecutorName.local or points_folder is not None):
        raise QbenchError("--memory-snapshot and --profile need --executor local and no --points")


def _diagnose(
    scenario: Scenario,
    points: tuple[Point, ...],
    folder: Path,
    device: Device,
    executor: Executor,
    wanted: tuple[bool, bool],
) -> None:
    from qbench.cli.diagnose import diagnose_points
    from qbench.measure.diagnostics import Diagnostics

    asked = Diagnostics(memory_snapshot=wanted[0], profile=wanted[1])
    diagnose_points(points, device, folder, asked, executor, scenario.measure.timeout_s)


def _check_flags(
    executor: ExecutorName,
    device: RunDeviceChoice,
    address: str | None,
    gpus_per_point: int | None,
    points_folder: Path | None,
) -> None:
    """Refuse flags that do not go together; raises QbenchError."""
    from qbench.errors import QbenchError

    if executor is not ExecutorName.ray and (address is not None or gpus_per_point is not None):
        raise QbenchError("--address and --gpus-per-point are for Ray; add --executor ray")
    if points_folder is not None and executor is not ExecutorName.local:
        raise QbenchError(
            "--points conflicts with --executor, because it measures nothing here; omit one of the two"
        )
    if gpus_per_point is not None and (
        gpus_per_point < 1 or device in (RunDeviceChoice.cpu, RunDeviceChoice.null)
    ):
        raise QbenchError(
            f"--gpus-per-point: given {gpus_per_point} with --device {device.value}; "
            "allowed: a whole number of at least 1, for GPUs"
        )
    for flag, given in (("--address", address), ("--points", points_folder)):
        if given is not None and device is RunDeviceChoice.auto:
            raise QbenchError(f"{flag} is for {ELSEWHERE}")


def _device(choice: RunDeviceChoice, elsewhere: bool) -> RunDevice:
    if choice is RunDeviceChoice.null:
        return "null"
    if elsewhere:
        return "cuda" if choice is RunDeviceChoice.cuda else "cpu"
    return chosen_device(DeviceChoice(choice.value))


def most_gpus(points: tuple[Point, ...]) -> int:
    """Return how many GPUs the largest of some points trains on."""
    return max((point.num_gpus for point in points), default=1)


def _executor(
    name: ExecutorName, device: RunDevice, address: str | None, gpus_per_point: int
) -> AbstractContextManager[Executor]:
    from qbench.measure.executors.local import LocalExecutor

    if name is ExecutorName.local:
        return nullcontext(LocalExecutor())
    from qbench.measure.executors.ray import RayExecutor

    return RayExecutor(device, address, gpus_per_point)


def check_names(scenario: Scenario, points: tuple[Point, ...]) -> None:
    """Tell an unknown GPU or model before anything is run; raises CatalogError."""
    from qbench.catalog.models import resolve_model
    from qbench.cli.target import tell_other_variants

    tell_other_variants(scenario.plan.gpus)
    for model in dict.fromkeys(point.model for point in points):
        resolve_model(model)


def chosen_device(choice: DeviceChoice) -> Device:
    """Return where to measure; raises QbenchError when CUDA is requested and not available."""
    from qbench.errors import QbenchError
    from qbench.measure import nvml
    from qbench.measure.environment import torch_has_cuda, torch_has_rocm
    from qbench.nullgpu import launcher

    if choice is DeviceChoice.cpu:
        return "cpu"
    if launcher.is_loaded():
        raise QbenchError(
            "CUDA in this process is the null GPU, which cannot be measured as a GPU; "
            "use `qbench run --device null`"
        )
    has_gpu, has_cuda = nvml.cuda_present(), torch_has_cuda()
    if has_gpu and has_cuda:
        note = nvml.choose_device().note
        if note is not None:
            print_error(note)
        return "cuda"
    if choice is DeviceChoice.cuda:
        what = "the installed torch is built without CUDA" if has_gpu else nvml.why_absent()
        way_out = "install a CUDA build of torch, or use" if has_gpu else "use"
        raise QbenchError(f"--device cuda: {what}; {way_out} --device cpu or auto")
    if has_gpu:
        print_error("there is a GPU, but the installed torch is built without CUDA: measuring on the CPU")
    elif has_cuda:
        print_error(f"torch is built for CUDA, but {nvml.why_absent()}: measuring on the CPU")
    elif torch_has_rocm():
        print_error("torch is built for ROCm, on which qbench does not measure: measuring on the CPU")
    return "cpu"


def _explain(
    scenario: Scenario,
    points: tuple[Point, ...],
    folder: Path,
    device: RunDevice,
    cards: tuple[str, ...],
    any_machine: bool,
    as_json: bool,
) -> int:
    from qbench.cli.progress import job_text
    from qbench.runs.run import reasons

    jobs = reasons(scenario, points, folder, device, cards=cards, any_machine=any_machine)
    to_run = [(job, reason) for job, reason in jobs if reason is not None]
    if as_json:
        rows = [
            {"point_id": job.point.point_id, "kind": job.kind, "repeat": job.repeat, "reason": reason}
            for job, reason in to_run
        ]
        print_json({"run": str(folder), "finished": len(jobs) - len(to_run), "to_run": rows})
        return 0
    for job, reason in to_run:
        print_text(f"{job_text(job)}: {reason}")
    print_text(f"{folder}: {len(to_run)} of {len(jobs)} would run, {len(jobs) - len(to_run)} are finished")
    return 0


def _run(
    scenario: Scenario,
    points: tuple[Point, ...],
    folder: Path,
    device: RunDevice,
    cards: tuple[str, ...],
    executor: Executor,
    any_machine: bool,
    as_json: bool,
) -> int:
    from qbench.cli.progress import shown_progress
    from qbench.runs.run import run_scenario

    where = f"a null GPU ({', '.join(cards)})" if cards else device
    with shown_progress(f"{scenario.name}: {len(points)} points on {where} into {folder}") as watch:
        done = run_scenario(
            scenario, points, folder, device, executor, watch, cards=cards, any_machine=any_machine
        )
    if done.notice:
        print_error(done.notice)
    if as_json:
        print_json({"run": str(folder), "results": done.done, "kept": done.kept, "outcomes": done.outcomes})
    else:
        kept = f"; {done.kept}already existed" if done.kept else ""
        print_text(f"{folder}: {done.done} results ({_endings(done.outcomes) or 'nothing to do'}{kept})")
    if set(done.outcomes) == {"error"} and not done.kept:
        return 2  # Not one point could even be planned: that is bad input, told with each point.
    return _exit_code(done.outcomes)


def _exchange(
    scenario: Scenario, points: tuple[Point, ...], folder: Path, device: Device, files: Path, as_json: bool
) -> int:
    from qbench.cli.progress import shown_progress
    from qbench.runs.exchange import exchange

    with shown_progress(f"{scenario.name}: {len(points)} points for {device} into {folder}") as watch:
        done = exchange(scenario, points, folder, device, files, watch)
    for notice in done.notices:
        print_error(notice)
    outcomes = done.progress.outcomes + Counter(record.outcome for record in done.taken)
    if as_json:
        print_json({"run": str(folder), "outcomes": outcomes, "points": str(files), "to_measure": done.left})
    else:
        print_text(f"{folder}: {_endings(outcomes) or 'nothing new'}")
        print_text(f"{files}: {done.left} to measure{_how_to_carry(files) if done.left else ''}")
    return _exit_code(outcomes)


def _how_to_carry(files: Path) -> str:
    name = files / "NAME"
    return f"; run `qbench run-point {name}.point.json {name}.result.json` for each, then this again"


def _endings(outcomes: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))


def _exit_code(outcomes: Mapping[str, int]) -> int:
    return 0 if set(outcomes) <= {"ok", "oom"} else 3
