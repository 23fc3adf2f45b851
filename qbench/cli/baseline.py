"""`qbench baseline accept`: store a run's results for later runs to be compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qbench.cli import options
from qbench.cli.console import print_json, print_text
from qbench.cli.options import OnceCommand
from qbench.errors import QbenchError

baseline_app = typer.Typer(
    name="baseline",
    help="Manage the baselines that `qbench check` compares runs with.",
    rich_markup_mode=None,
)


@baseline_app.callback()
def _root() -> None:
    """Keep `accept` a command of its own, although it is the only one."""


@baseline_app.command("accept", cls=OnceCommand)
def accept_command(
    run: Annotated[Path, typer.Argument(help="Run folder, .jsonl file, or JSON of `qbench plan --json`.")],
    to: Annotated[Path, typer.Option(help="Baseline file (.jsonl); created if missing.")],
    reason: Annotated[str, typer.Option(help="Why the numbers may change; stored with them.")],
    prune: Annotated[bool, typer.Option("--prune", help="Remove points that the run does not have.")] = False,
    as_json: options.AsJson = False,
) -> int:
    """Take a run's results into a baseline file; points that did not change keep their lines."""
    from qbench.comparison.baselines import accept
    from qbench.comparison.check import Check
    from qbench.records.document import read_any
    from qbench.records.files import locked
    from qbench.records.store import read_records, write_records
    from qbench.report.ci.check import check_document, finding_lines
    from qbench.words.phrases import counted, listed

    if not reason.strip():
        raise QbenchError("--reason: given nothing; say in a sentence why the numbers may change")
    if to.is_dir():
        raise QbenchError(f"--to: {to} is a folder; name a file in it, such as {to / 'plan.jsonl'}")
    if to.suffix != ".jsonl":
        raise QbenchError(f"--to: given {to}; a baseline is a .jsonl file, such as baselines/a100.jsonl")
    now = read_any(run)
    with locked(to):
        before = read_records(to) if to.exists() else []
        done = accept(before, now, reason.strip(), prune=prune)
        write_records(to, done.records)
    changes = {"replaced": done.replaced, "added": done.added, "removed": done.removed}
    moved = Check(findings=done.moved)
    if as_json:
        labels = {word: list(points) for word, points in changes.items()}
        findings = check_document(moved, 0)["findings"]
        print_json({"file": str(to), **labels, "lacking": dict(done.lacking), "moved": findings})
        return 0
    for word, points in changes.items():
        for point in points:
            print_text(f"{word:<9} {point}")
    for line in finding_lines(moved):
        print_text(line)
    counts = ", ".join(f"{len(points)} {word}" for word, points in changes.items())
    print_text(f"{to}: {counts}, {done.kept} kept")
    if done.lacking:
        # By kind, since a run of plans alone would take every measurement away.
        lacking = listed([counted(done.lacking[kind], kind) for kind in sorted(done.lacking, reverse=True)])
        print_text(f"the run lacks {lacking} of the baseline, kept as before; --prune removes them")
    return 0
