"""`qbench ab ... -- COMMAND`: a training command in two Python environments, on a null GPU."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.cli.console import print_json, print_note, print_sentence, print_table, print_text
from qbench.errors import QbenchError

if TYPE_CHECKING:
    from qbench.dryrun.run import Request
    from qbench.records.record import Record

DEFAULT_OUT = Path("runs/dryrun-ab")
FAILED = 3


def compare_program(command: Sequence[str], a: str, b: str, gpu: str, out: Path | None, as_json: bool) -> int:
    """Run a command in both environments, store a record of each, and print what differs."""
    from qbench.catalog.gpus import find_gpu
    from qbench.cli.dryrun import LARGE_CARD
    from qbench.comparison.environments import compare_environments, package_changes
    from qbench.dryrun.run import Request
    from qbench.report.environments import as_json as change_values
    from qbench.report.environments import packages_table, point_table, point_title, summary_lines
    from qbench.words.dryrun import dry_run_sentence

    folder = out or DEFAULT_OUT
    asked = Request(command=command, gpu=find_gpu(gpu or LARGE_CARD))
    records = [_ran(asked, name, python, folder / name) for name, python in (("a", a), ("b", b))]
    versions = [{name: str(version) for name, version in record.versions.items()} for record in records]
    packages, changes = package_changes(*versions), compare_environments(records[:1], records[1:])
    if as_json:
        named = [dict(zip(("name", "a", "b"), change, strict=True)) for change in packages]
        print_json({"packages": named, "points": change_values(changes), "summary": summary_lines(changes)})
        return _exit_code(records)
    for name, record in zip("AB", records, strict=True):
        print_sentence(f"{name}  {dry_run_sentence(record)}")
    if packages:
        print_table(packages_table(packages))
    for change in changes:
        print_text(point_title(change))
        print_table(point_table(change))
    for sentence in summary_lines(changes):
        print_sentence(sentence)
    return _exit_code(records)


def _ran(asked: Request, name: str, python: str, folder: Path) -> Record:
    """Return the record of the command in one environment, whose programs come first."""
    from qbench.dryrun.run import dry_run
    from qbench.records.store import open_store

    path = shutil.which(python)
    if path is None:
        raise QbenchError(
            f"--{name}: {python} cannot be run; give the path of a Python, for example .venv/bin/python"
        )
    programs = os.path.dirname(os.path.abspath(path))
    is_script = asked.command[0].endswith(".py")
    command = [os.path.join(programs, "python"), *asked.command] if is_script else asked.command
    variables = {**os.environ, "PATH": os.pathsep.join((programs, os.environ.get("PATH", os.defpath)))}
    with open_store(folder) as store:
        print_note(f"{name.upper()}: {asked.command[0]} on {asked.gpu.name} (null GPU)")
        record = dry_run(replace(asked, command=command, python=path), folder, variables)
        store.append(record)
    return record


def _exit_code(records: Sequence[Record]) -> int:
    return 0 if {record.outcome for record in records} <= {"ok", "oom"} else FAILED
