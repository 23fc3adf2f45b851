"""`qbench plan`: memory of a training step without a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qbench.cli.console import print_error, print_json, print_text
from qbench.errors import QbenchError

if TYPE_CHECKING:
    from qbench.catalog.gpus import GpuSpec
    from qbench.cli.target import Target
    from qbench.plan.trace import Trace
    from qbench.planning import PlanFor
    from qbench.records.record import Record
    from qbench.scenario.schema import Point


class DeviceName(str, Enum):
    """Whose kernels to plan for."""

    cuda = "cuda"
    cpu = "cpu"


TargetName = Annotated[
    str, typer.Argument(help="Scenario file, model of the catalog or hub, or folder with config.json.")
]
Device = Annotated[DeviceName, typer.Option(help="Whose kernels to plan for.")]
TargetModules = Annotated[
    list[str] | None, typer.Option(help="Modules to adapt, separated by commas, or all-linear.")
]
AllocConf = Annotated[
    str, typer.Option(help="CUDA's allocator as PYTORCH_ALLOC_CONF sets it; the environment is not asked.")
]
SnapshotFile = Annotated[
    Path | None, typer.Option(help="Write every allocation for pytorch.org/memory_viz (a single point).")
]


def plan_command(
    target: TargetName,
    device: Device = DeviceName.cuda,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32, bf16, fp16, nf4, nf4-dq, fp4, fp4-dq, int8.")
    ] = None,
    r: Annotated[list[int] | None, typer.Option("--r", help="Rank of the adapters.")] = None,
    target_modules: TargetModules = None,
    lora_dropout: Annotated[
        list[float] | None, typer.Option(help="Dropout before lora_A; adapted experts allow 0 only.")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Sequences in one forward pass.")] = None,
    seq: Annotated[list[int] | None, typer.Option(help="Tokens in one sequence.")] = None,
    gradient_checkpointing: Annotated[bool | None, typer.Option(help="Recompute layers in backward.")] = None,
    optim: Annotated[list[str] | None, typer.Option(help="As TrainingArguments.optim.")] = None,
    autocast: Annotated[list[str] | None, typer.Option(help="none, bf16, fp16.")] = None,
    recipe: Annotated[list[str] | None, typer.Option(help="plain, peft, trainer, trl.")] = None,
    attn: Annotated[list[str] | None, typer.Option(help="auto, eager, sdpa, flash_attention_2.")] = None,
    gpu: Annotated[list[str] | None, typer.Option(help="GPU to hold the plan against.")] = None,
    gpu_memory: Annotated[str, typer.Option(help="Memory of a card that is not listed, as 24GiB.")] = "",
    compute_capability: Annotated[str, typer.Option(help="Compute capability of that card, as 8.9.")] = "",
    max_points: Annotated[int, typer.Option(help="Refuse a scenario with more points.")] = 10_000,
    alloc_conf: AllocConf = "",
    snapshot: SnapshotFile = None,
    out: Annotated[Path | None, typer.Option(help="Also store the plans in this run folder.")] = None,
    use_cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Take plans made before with the same libraries.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Plan the memory of a training step without a GPU.

    It says what the step needs, where it goes, and whether it fits. Flags of a setting can be repeated,
    which plans every combination.
    """
    flags: dict[str, Any] = {
        "precision": precision,
        "r": r,
        "target_modules": [_modules(text) for text in target_modules or []],
        "lora_dropout": lora_dropout,
        "per_device_train_batch_size": batch,
        "seq_len": seq,
        "gradient_checkpointing": None if gradient_checkpointing is None else [gradient_checkpointing],
        "optim": optim,
        "autocast": autocast,
        "recipe": recipe,
        "attn_implementation": attn,
    }
    card, memory = (gpu_memory, compute_capability), _MemoryOptions(alloc_conf, snapshot)
    records = _planned(target, flags, gpu or [], card, device.value, max_points, memory, use_cache)
    if out is not None:
        _store(records, out)
    if as_json:
        print_json({"records": [record.to_dict() for record in records]})
    else:
        _print_plans(records)
    return _exit_code(records, bool(gpu or gpu_memory))


def _modules(text: str) -> str | list[str]:
    names = [name.strip() for name in text.split(",")]
    return names[0] if names == ["all-linear"] else names


@dataclass(frozen=True, slots=True)
class _MemoryOptions:
    """What is asked of CUDA's allocator: its settings, and the file for its history."""

    alloc_conf: str
    snapshot: Path | None

    def check(self, device: str, num_points: int) -> None:
        """Raise QbenchError where they ask for what a plan cannot give."""
        from qbench.memory.allocator import AllocatorConfig

        AllocatorConfig.from_env_text(self.alloc_conf)
        if device == "cpu" and (self.alloc_conf or self.snapshot):
            raise QbenchError("--alloc-conf and --snapshot are of CUDA's allocator; leave out --device cpu")
        if self.snapshot and num_points > 1:
            raise QbenchError(
                f"--snapshot: {num_points} points given, allowed: one; plan the point of interest alone"
            )
        if self.snapshot and not self.snapshot.absolute().parent.is_dir():
            raise QbenchError(
                f"--snapshot: there is no folder {self.snapshot.absolute().parent}; make it first"
            )

    def write(self, traced: Trace) -> None:
        """Write the history of a trace to the file."""
        from qbench.memory.allocator import AllocatorConfig
        from qbench.memory.snapshot import snapshot_pickle

        assert self.snapshot is not None
        content = snapshot_pickle(traced.ledger, AllocatorConfig.from_env_text(self.alloc_conf))
        try:
            self.snapshot.write_bytes(content)
        except OSError as error:
            raise QbenchError(f"--snapshot: {self.snapshot} cannot be written ({error.strerror})") from error


def _planned(
    name: str,
    flags: dict[str, Any],
    gpus: list[str],
    card: tuple[str, str],
    device: Any,
    max_points: int,
    memory: _MemoryOptions,
    use_cache: bool,
) -> list[Record]:
    from qbench.catalog.models import resolve_model
    from qbench.cli.progress import shown_plans
    from qbench.cli.target import read_target
    from qbench.planning import PlanFor, plans
    from qbench.records.plan_cache import PlanCache

    target = read_target(name, flags, gpus, max_points)
    memory.check(device, len(target.points))
    cards = _cards(target, card, device, bool(gpus))
    for point in target.points:
        resolve_model(point.model)

    settings = PlanFor(device=device, gpus=tuple(cards), alloc_conf=memory.alloc_conf)
    if memory.snapshot is not None:
        return [_with_snapshot(target.points[0], settings, memory)]
    with shown_plans(len(target.points)) as on_plan:
        records = plans(target.points, settings, PlanCache() if use_cache else None, on_plan)
    failed = [record for record in records if record.outcome == "error"]
    if failed and len(records) == 1:
        raise QbenchError(failed[0].detail["error"])
    for record in failed:
        print_error(f"{record.point.label}: {record.detail['error']}")
    return records


def _with_snapshot(point: Point, settings: PlanFor, memory: _MemoryOptions) -> Record:
    from qbench.memory.allocator import AllocatorConfig
    from qbench.plan.planner import plan

    allocator = AllocatorConfig.from_env_text(settings.alloc_conf)
    return plan(point, settings.device, settings.gpus, allocator=allocator, on_trace=memory.write)


def _store(records: list[Record], folder: Path) -> None:
    from qbench.records.store import open_store

    with open_store(folder) as store:
        for record in records:
            store.append(record)


def _cards(target: Target, card: tuple[str, str], device: str, gpu_named: bool) -> list[GpuSpec]:
    from qbench.catalog.gpus import find_gpu
    from qbench.cli.target import described_gpu

    if device == "cpu" and (gpu_named or any(card)):
        raise QbenchError("a GPU is named, but --device cpu plans for the CPU; leave one of the two out")
    described = [described_gpu(*card)] if any(card) else []
    return [*described, *(find_gpu(name) for name in target.gpus)]


def _print_plans(records: list[Record]) -> None:
    from qbench.report.summary import plan_lines

    for line in plan_lines(records):
        print_text(line)


def _exit_code(records: list[Record], gpu_named: bool) -> int:
    """Return 2 when a point could not be planned, 1 when a GPU was named and no point fits any, else 0."""
    if any(record.outcome != "ok" for record in records):
        return QbenchError.exit_code
    held = [fit["fits"] for record in records for fit in record.detail.get("fits", [])]
    return 1 if gpu_named and not any(held) else 0
