"""`qbench plan`: memory of a training step without a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qbench.cli import job_options, options
from qbench.cli.console import print_error, print_json, print_note, print_sentence, print_text
from qbench.cli.setting_flags import values_of, with_setting_flags
from qbench.errors import QbenchError
from qbench.units import format_bytes

if TYPE_CHECKING:
    from qbench.catalog.gpus import GpuSpec
    from qbench.cli.target import Target
    from qbench.planner.job import Job
    from qbench.planner.trace import Trace
    from qbench.records.record import Record
    from qbench.runs.plans import PlanFor
    from qbench.scenario.schema import Point


class DeviceName(str, Enum):
    """Whose kernels to plan for."""

    cuda = "cuda"
    cpu = "cpu"


DeviceOption = Annotated[DeviceName, typer.Option(help="Whose kernels to plan for.")]
SaveScenario = Annotated[Path | None, typer.Option(help="Write the points as a scenario file.")]
SnapshotFile = Annotated[
    Path | None, typer.Option(help="Write every allocation for pytorch.org/memory_viz (a single point).")
]


@with_setting_flags()
def plan_command(
    target: options.TargetName = None,
    from_file: options.FromFile = None,
    from_format: options.FromFormat = "",
    save_scenario: SaveScenario = None,
    device: DeviceOption = DeviceName.cuda,
    gpu: options.Gpu = None,
    gpu_memory: options.GpuMemory = "",
    compute_capability: options.ComputeCapability = "",
    max_points: options.MaxPoints = 10_000,
    alloc_conf: options.AllocConf = "",
    snapshot: SnapshotFile = None,
    tokens: job_options.Tokens = "",
    epochs: job_options.Epochs = 1.0,
    eval_tokens: job_options.EvalTokens = "",
    eval_steps: job_options.EvalSteps = 0,
    save_steps: job_options.SaveSteps = 0,
    out: Annotated[Path | None, typer.Option(help="Also store the plans in this run folder.")] = None,
    use_cache: options.UseCache = True,
    as_json: options.AsJson = False,
    **settings: Any,
) -> int:
    """Plan the memory of a training step without a GPU.

    Reports what the step needs, what is alive at the peak, and whether it fits. Repeat a flag to plan every
    combination.
    """
    from qbench.cli.target import TargetRequest, read_asked

    job = job_options.job_of(tokens, epochs, eval_tokens, eval_steps, save_steps)
    memory = _MemoryOptions(alloc_conf, snapshot)
    request = TargetRequest(
        name=target,
        config=from_file,
        config_format=from_format,
        settings=values_of(settings),
        gpus=tuple(gpu or ()),
        gpu_memory=gpu_memory,
        compute_capability=compute_capability,
        max_points=max_points,
    )
    asked = read_asked(request)
    _save_scenario(asked, save_scenario)
    cards = _cards(asked, device)
    memory.check(device.value, len(asked.points))
    plan_for = _plan_for(device.value, cards, alloc_conf)
    records = _of_one_run(asked, _planned(asked, plan_for, memory, use_cache))
    _store(records, out)
    if as_json:
        # The text has them among its own.
        asked.print_caveats()
        _print_document(records, job)
    else:
        _print_plans(records, job)
        # What needs more than planned may not fit after a change either.
        if device is DeviceName.cuda and set(asked.unmodelled.values()) <= {"less"}:
            _print_changes(records, cards, memory.alloc_conf)
    if asked.advice and any(record.outcome == "ok" for record in records):
        print_note(asked.advice if as_json or len(records) > 1 else _advice(records[0], plan_for, use_cache))
    return _exit_code(records, bool(gpu or gpu_memory))


@dataclass(frozen=True, slots=True)
class _MemoryOptions:
    """Options of CUDA's allocator: its settings, and the file for its history."""

    alloc_conf: str
    snapshot: Path | None

    def check(self, device: str, num_points: int) -> None:
        """Raise QbenchError where they ask for what a plan cannot give."""
        if self.alloc_conf:
            from qbench.memory.allocator.config import AllocatorConfig

            AllocatorConfig.from_env_text(self.alloc_conf)
        if device == "cpu" and (self.alloc_conf or self.snapshot):
            raise QbenchError("--alloc-conf and --snapshot need CUDA's allocator; omit --device cpu")
        if self.snapshot and num_points > 1:
            raise QbenchError(
                f"--snapshot: {num_points} points given, allowed: one; plan the point of interest alone"
            )
        if self.snapshot and not self.snapshot.absolute().parent.is_dir():
            raise QbenchError(
                f"--snapshot: there is no folder {self.snapshot.absolute().parent}; create it first"
            )

    def write(self, traced: Trace) -> None:
        """Write the history of a trace to the file."""
        from qbench.memory.allocator.config import AllocatorConfig
        from qbench.memory.history.snapshot import snapshot_pickle

        assert self.snapshot is not None
        content = snapshot_pickle(traced.ledger, AllocatorConfig.from_env_text(self.alloc_conf))
        try:
            self.snapshot.write_bytes(content)
        except OSError as error:
            raise QbenchError(f"--snapshot: {self.snapshot} cannot be written ({error.strerror})") from error


def _save_scenario(asked: Target, file: Path | None) -> None:
    if file is None:
        return
    from qbench.scenario.importers.configs import scenario_of
    from qbench.scenario.load import scenario_text

    source = asked.request.config or Path(asked.request.name or "")
    text = scenario_text(scenario_of(source, asked.points, asked.gpus), asked.caveats)
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise QbenchError(f"--save-scenario: {file} cannot be written ({error.strerror})") from error


def _plan_for(device: Any, cards: list[GpuSpec], alloc_conf: str) -> PlanFor:
    from qbench.measure.known_speed import usable_calibrations
    from qbench.runs.plans import PlanFor

    known = usable_calibrations(device)
    return PlanFor(device=device, gpus=tuple(cards), alloc_conf=alloc_conf, calibrations=known)


def planned(target: Target, device: str) -> list[Record]:
    """Return the plan of each point of a target, from the cache where it is there; progress goes to stderr.

    Raises QbenchError where the only point cannot be planned.
    """
    cards = target.cards() if device == "cuda" else []
    return _planned(target, _plan_for(device, cards, ""), _MemoryOptions("", None), use_cache=True)


def _planned(target: Target, settings: PlanFor, memory: _MemoryOptions, use_cache: bool) -> list[Record]:
    from qbench.catalog.models import resolve_model
    from qbench.cli.progress import shown_plans
    from qbench.records.plan_cache import PlanCache
    from qbench.runs.plans import plans

    for point in target.points:
        resolve_model(point.model)
    if memory.snapshot is not None:
        return [_with_snapshot(target.points[0], settings, memory)]
    with shown_plans(len(target.points)) as on_plan:
        records = plans(target.points, settings, PlanCache(reads=use_cache), on_plan)
    failed = [record for record in records if record.outcome != "ok"]
    if failed and len(records) == 1:
        raise QbenchError(failed[0].error)
    for record in failed:
        print_error(f"{record.point.label}: {record.error}")
    return records


def _of_one_run(target: Target, records: list[Record]) -> list[Record]:
    from qbench.records.record import run_id_of

    run_id = run_id_of("plan")
    return [replace(target.judged(record), run_id=run_id) for record in records]


def _with_snapshot(point: Point, settings: PlanFor, memory: _MemoryOptions) -> Record:
    from qbench.memory.allocator.config import AllocatorConfig
    from qbench.planner.plan import plan

    allocator = AllocatorConfig.from_env_text(settings.alloc_conf)
    return plan(
        point,
        settings.device,
        settings.gpus,
        allocator=allocator,
        on_trace=memory.write,
        calibrations=settings.calibrations,
    )


def _store(records: list[Record], folder: Path | None) -> None:
    if folder is None:
        return
    from qbench.records.store import open_store

    with open_store(folder) as store:
        for record in records:
            store.append(record)


def _cards(target: Target, device: DeviceName) -> list[GpuSpec]:
    if device is DeviceName.cuda:
        return target.cards()
    if target.request.gpus or target.request.describes_card:
        raise QbenchError("--gpu conflicts with --device cpu, which plans for the CPU; omit one of the two")
    return []  # The GPUs that a scenario names are no part of a plan for the CPU.


def _print_document(records: list[Record], job: Job | None) -> None:
    hours = {} if job is None else {"jobs": job_options.job_documents(records, job)}
    print_json({"records": [record.to_dict() for record in records], **hours})


def _print_plans(records: list[Record], job: Job | None) -> None:
    from qbench.report.terminal.plan import plan_lines

    for line in plan_lines(records):
        print_text(line)
    if job is not None:
        job_options.print_jobs(records, job)


def _print_changes(records: list[Record], cards: list[GpuSpec], alloc_conf: str) -> None:
    """Print what would make the smallest of the points fit the first card, where none fits any card."""
    fits = [fit for record in records for fit in record.fits]
    if not fits or any(fit.fits or fit.verdict == "unknown" for fit in fits):
        return
    from qbench.cli.progress import shown_steps
    from qbench.report.terminal.table import GAP, line_width, with_text
    from qbench.runs.sizing import changes_that_fit
    from qbench.words.settings import change_text

    smallest = min(records, key=lambda record: record.device_bytes or 0)
    with shown_steps() as watch:
        watch(1, 1, "changes that would fit")
        alone, together = changes_that_fit(smallest, cards[0], alloc_conf)
    which = (
        f"{smallest.point.precision} fit {cards[0].name}" if len(records) > 1 else f"it fit {cards[0].name}"
    )
    print_text("")
    if alone:
        rows = [
            (change_text(each.changes), f"frees {format_bytes(each.freed_bytes)}", each.cost)
            for each in alone
        ]
        lines = [GAP + line for line in with_text(rows, "<<", line_width() - len(GAP))]
        print_text("\n".join([f"Each of these changes alone makes {which}:", *lines]))
    elif together:
        print_sentence(f"No single change makes {which}, these together do: {change_text(together)}.")
    else:
        print_sentence(
            f"No change of method, batch or rank makes {which}; use a shorter --seq or a larger card."
        )


MOVES = 0.1
"""Share of the peak from which another recipe is worth a word."""


def _advice(record: Record, settings: PlanFor, use_cache: bool) -> str:
    """Return which recipe was planned where none was given, and by how much the common ones move its peak."""
    from qbench.records.plan_cache import PlanCache
    from qbench.runs.plans import other_recipes

    first = replace(settings, gpus=settings.gpus[:1])
    ratios = other_recipes(record, first, PlanCache(reads=use_cache))
    names = {
        "trainer": "transformers' Trainer (--recipe trainer --autocast bf16)",
        "trl": "TRL's SFTTrainer (--recipe trl)",
    }
    told = [f"{_moved(ratio)} with {names[recipe]}" for recipe, ratio in ratios.items()]
    effect = f"; the peak is {', '.join(told)}" if told else ""
    return f"Planned for a training loop of your own (recipe peft, no autocast){effect}"


def _moved(ratio: float) -> str:
    if abs(ratio - 1) <= MOVES:
        return f"within {100 * MOVES:.0f} %"
    return f"{100 * abs(ratio - 1):.0f} % {'lower' if ratio < 1 else 'higher'}"


def _exit_code(records: list[Record], gpu_named: bool) -> int:
    """Return 2 when a point could not be planned, 1 when a GPU was named and no point fits any, else 0."""
    if any(record.outcome != "ok" for record in records):
        return QbenchError.exit_code
    held = [fit.fits for record in records for fit in record.fits]
    return 1 if gpu_named and not any(held) else 0
