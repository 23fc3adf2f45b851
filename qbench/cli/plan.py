"""`qbench plan`: memory of a training step without a GPU."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

import typer

from qbench.cli.console import print_json, print_note, print_table, print_text
from qbench.cli.target import first_line, read_target


class DeviceName(str, Enum):
    """Whose kernels to plan for."""

    cuda = "cuda"
    cpu = "cpu"


Target = Annotated[
    str, typer.Argument(help="Scenario file, model of the catalog or hub, or folder with config.json.")
]
Device = Annotated[DeviceName, typer.Option(help="Whose kernels to plan for.")]
Repeated = typer.Option(help="Repeat the flag for a sweep.")


def plan_command(
    target: Target,
    device: Device = DeviceName.cuda,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32, bf16, fp16, nf4, nf4-dq, fp4, fp4-dq, int8.")
    ] = None,
    r: Annotated[list[int] | None, typer.Option("--r", help="Rank of the adapters.")] = None,
    target_modules: Annotated[
        list[str] | None, typer.Option(help="Modules to adapt, separated by commas, or all-linear.")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Sequences in one forward pass.")] = None,
    seq: Annotated[list[int] | None, typer.Option(help="Tokens in one sequence.")] = None,
    gradient_checkpointing: Annotated[bool | None, typer.Option(help="Recompute layers in backward.")] = None,
    optim: Annotated[list[str] | None, typer.Option(help="As TrainingArguments.optim.")] = None,
    autocast: Annotated[list[str] | None, typer.Option(help="none, bf16, fp16.")] = None,
    recipe: Annotated[list[str] | None, typer.Option(help="plain, peft, trainer, trl.")] = None,
    attn: Annotated[list[str] | None, typer.Option(help="auto, eager, sdpa, flash_attention_2.")] = None,
    gpu: Annotated[list[str] | None, typer.Option(help="GPU to hold the plan against.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Plan the memory of a training step: what it needs, where it goes, and whether it fits."""
    flags: dict[str, Any] = {
        "precision": precision,
        "r": r,
        "target_modules": [_modules(text) for text in target_modules or []],
        "per_device_train_batch_size": batch,
        "seq_len": seq,
        "gradient_checkpointing": None if gradient_checkpointing is None else [gradient_checkpointing],
        "optim": optim,
        "autocast": autocast,
        "recipe": recipe,
        "attn_implementation": attn,
    }
    records = _planned(target, flags, gpu or [], device.value)
    if as_json:
        print_json({"records": [record.to_dict() for record in records]})
    else:
        _print_records(records)
    return _exit_code(records, bool(gpu))


def _modules(text: str) -> str | list[str]:
    names = [name.strip() for name in text.split(",")]
    return names[0] if names == ["all-linear"] else names


def _planned(target: str, flags: dict[str, Any], gpus: list[str], device: Any) -> list[Any]:
    from qbench.catalog.gpus import find_gpu
    from qbench.catalog.models import resolve_model
    from qbench.errors import QbenchError

    chosen = read_target(target, flags, gpus)
    cards = [find_gpu(name) for name in chosen.gpus]
    for point in chosen.points:
        resolve_model(point.model)

    # Only now the heavy libraries: bad input is told at once.
    from qbench.plan.planner import plan
    from qbench.sweep import failed_plan

    records = []
    for point in chosen.points:
        try:
            records.append(plan(point, device, cards))
        except QbenchError as error:
            if len(chosen.points) == 1:
                raise
            print_note(f"qbench: {point.label}: {first_line(error)}")
            records.append(failed_plan(point, device, "plan", error))
    return records


def _print_records(records: list[Any]) -> None:
    from qbench.report.content import gather_content

    content = gather_content(records)
    for line in content.headline if len(records) > 1 else []:
        print_text(line)
    for line in content.warnings:
        print_text(line)
    for table in (content.comparison, content.points, content.fits, content.caveats):
        if table is not None:
            print_table(table)


def _exit_code(records: list[Any], gpu_named: bool) -> int:
    """Return 1 when a GPU was named and no point fits any, else 0."""
    held = [fit["fits"] for record in records for fit in record.detail.get("fits", [])]
    return 1 if gpu_named and not any(held) else 0
