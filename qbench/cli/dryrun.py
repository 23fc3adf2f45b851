"""`qbench dryrun`: any training command on a card that is not there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qbench.cli import options
from qbench.cli.console import print_json, print_note, print_text
from qbench.errors import QbenchError

if TYPE_CHECKING:
    from qbench.records.record import Record

LARGE_CARD = "H200 SXM"
"""Where no card is named, the question is how much the program takes."""
DEFAULT_OUT = Path("runs/dryrun")
EXIT_CODES = {"ok": 0, "oom": 1}
FAILED = 3


def dryrun_command(
    command: Annotated[
        list[str], typer.Argument(help="The training command, after --, as you run it yourself.")
    ],
    gpu: Annotated[str, typer.Option(help="Card of the catalog, as `qbench gpus` lists them.")] = LARGE_CARD,
    gpus: Annotated[int, typer.Option(help="Number of these cards that the command sees.")] = 1,
    steps: Annotated[int, typer.Option(help="Optimizer steps after which the program is ended.")] = 3,
    timeout: Annotated[float, typer.Option(help="Seconds after which the program is ended.")] = 1800.0,
    python: Annotated[
        str | None,
        typer.Option(help="The command's Python, where it is not found behind the command."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Hub id that the program loads, where neither the command nor its files spell it out; "
            "can be repeated."
        ),
    ] = None,
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="Let a tokenizer of bytes stand in where one is missing.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the record and the program's output.")] = DEFAULT_OUT,
    as_json: options.AsJson = False,
) -> int:
    """Run any training command for a few steps on a GPU that you do not have, and read its memory.

    The command stays as it is. PyTorch's own allocator is read for loading, the first step and later steps,
    and the program is ended after --steps, before it writes a checkpoint. Exit 0 when it fits, 1 when it runs
    out of memory, 2 when it cannot be run here, 3 when the program fails for another reason.
    """
    from qbench.catalog.gpus import find_gpu
    from qbench.dryrun.run import Request, dry_run
    from qbench.records.store import open_store

    for name, given in (("--gpus", gpus), ("--steps", steps)):
        if given < 1:
            raise QbenchError(f"{name}: given {given}; allowed: a whole number of at least 1")
    if timeout <= 0:
        raise QbenchError(f"--timeout: given {timeout:g}; allowed: seconds above 0")
    card = find_gpu(gpu)
    asked = Request(
        command=command,
        gpu=card,
        gpus=gpus,
        steps=steps,
        timeout_s=timeout,
        python=python,
        models=tuple(model or ()),
        synthetic=synthetic,
    )
    with open_store(out) as store:
        print_note(f"{command[0]} on {gpus} x {card.name} (null GPU); its output is in {out}/output.log")
        record = dry_run(asked, out)
        store.append(record)
    if as_json:
        print_json(record.to_dict())
    else:
        _print(record)
    return EXIT_CODES.get(record.outcome, FAILED)


def _print(record: Record) -> None:
    from qbench.words.dryrun import dry_run_lines

    print_text("\n".join(dry_run_lines(record)))
