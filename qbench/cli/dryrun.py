"""`qbench dryrun`: any training command on a card that is not there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qbench.cli import options
from qbench.cli.console import print_json, print_note, print_text
from qbench.errors import QbenchError

if TYPE_CHECKING:
    from qbench.dryrun.run import Rows
    from qbench.records.record import Record

LARGE_CARD = "H200 SXM"
"""Where no card is named, the question is how much the program takes."""
DEFAULT_OUT = Path("runs/dryrun")
EXIT_CODES = {"ok": 0, "oom": 1}
FAILED = 3


Command = Annotated[list[str], typer.Argument(help="The training command, after --, as you run it yourself.")]
Gpu = Annotated[
    str | None, typer.Option(help="GPU that the command sees, for example 'RTX 4090' (see qbench gpus).")
]
Gpus = Annotated[int, typer.Option(help="Number of such GPUs that the command sees.")]
RankOnly = Annotated[
    bool, typer.Option("--rank-only", help="Run only rank 0 of --gpus, which needs less time and memory.")
]
Steps = Annotated[int, typer.Option(help="End the program after this many optimizer steps.")]
Timeout = Annotated[float, typer.Option(help="End the program after this many seconds.")]
Python = Annotated[
    str | None, typer.Option(help="Python that runs the command, if the command does not show it.")
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        help="Hub id that the program loads, if neither the command nor its files contain it; "
        "can be repeated."
    ),
]
Synthetic = Annotated[
    bool,
    typer.Option("--synthetic", help="Make up the tokenizer and the datasets that this machine lacks."),
]
Seq = Annotated[
    str | None,
    typer.Option(
        help="Tokens of each made-up row, or a file with one number per line; the chat template adds its "
        "own. Implies --synthetic. Default: 512."
    ),
]
RowsOf = Annotated[
    list[str] | None,
    typer.Option(
        "--rows",
        metavar="DATASET=FILE",
        help="JSON lines in place of a dataset, for columns that made-up rows lack; implies --synthetic.",
    ),
]
Out = Annotated[Path, typer.Option(help="Folder for the record and the program's output.")]


def dryrun_command(
    command: Command,
    gpu: Gpu = None,
    gpus: Gpus = 1,
    rank_only: RankOnly = False,
    steps: Steps = 3,
    timeout: Timeout = 1800.0,
    python: Python = None,
    model: Models = None,
    synthetic: Synthetic = False,
    seq: Seq = None,
    rows: RowsOf = None,
    out: Out = DEFAULT_OUT,
    as_json: options.AsJson = False,
) -> int:
    """Run any training command for a few steps on a GPU that you do not have, and read its memory.

    The command runs unchanged, and ends after --steps, before it writes a checkpoint. Memory is that of
    PyTorch's own allocator: for loading, the first step and later steps. Exit 0 if it fits, 1 if it runs out
    of memory, 2 if it cannot run here, 3 if the program fails for another reason.
    """
    from qbench.catalog.gpus import find_gpu
    from qbench.dryrun.run import MOST_GPUS, Request, dry_run
    from qbench.records.store import open_store

    for name, given in (("--gpus", gpus), ("--steps", steps)):
        if given < 1:
            raise QbenchError(f"{name}: given {given}; allowed: a whole number of at least 1")
    if gpus > MOST_GPUS and not rank_only:
        raise QbenchError(f"--gpus: given {gpus}; allowed: up to {MOST_GPUS}, and more with --rank-only")
    if timeout <= 0:
        raise QbenchError(f"--timeout: given {timeout:g}; allowed: seconds above 0")
    card = find_gpu(gpu or LARGE_CARD)
    if gpu is None:
        print_note(
            f"No card is named, so this says what the program takes on a large one, {card.name}; "
            "name yours with --gpu to learn whether it fits."
        )
    asked = Request(
        command=command,
        gpu=card,
        gpus=gpus,
        steps=steps,
        timeout_s=timeout,
        python=python,
        models=tuple(model or ()),
        rank_only=rank_only,
        synthetic=_rows(seq, rows or ()) if synthetic or seq or rows else None,
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


def _rows(seq: str | None, files: Sequence[str]) -> Rows:
    """Return what stands in for datasets, as --seq and --rows say."""
    from qbench.dryrun.run import DEFAULT_LENGTH, Rows

    lengths = [DEFAULT_LENGTH]
    if seq is not None:
        text = seq if seq.isdecimal() else _read("--seq", seq)
        if not all(word.isdecimal() and int(word) for word in text.split()) or not text.split():
            raise QbenchError(f"--seq: given {seq}; allowed: a number of tokens, or a file of such numbers")
        lengths = [int(word) for word in text.split()]
    named: dict[str, str] = {}
    for given in files:
        name, _, file = given.partition("=")
        if not file:
            raise QbenchError(f"--rows: given {given}; allowed: DATASET=FILE, with one JSON object per line")
        _read("--rows", file)
        named[name] = os.path.abspath(file)
    return Rows(lengths=lengths, files=named)


def _read(option: str, file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise QbenchError(f"{option}: {file} cannot be read: {error}") from None


def _print(record: Record) -> None:
    from qbench.words.dryrun import dry_run_lines

    print_text("\n".join(dry_run_lines(record)))
