"""`qbench validate --null`: plan the grid, run it on null GPUs, and report where the two differ."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.cli.console import print_json, print_note, print_table, print_text

if TYPE_CHECKING:
    from qbench.report.null_grid import GridValues
    from qbench.runs.null_grid import GridResult, GridRow


@dataclass(frozen=True, slots=True, kw_only=True)
class NullRows:
    """Which points to run: one out of so many of the grid or, where `random` is not 0, so many outside it."""

    every: int = 1
    random: int = 0
    seed: int = 0

    def chosen(self) -> tuple[GridRow, ...]:
        """Return the points."""
        from qbench.runs.null_grid import grid_rows, random_rows

        return random_rows(self.random, self.seed) if self.random else grid_rows(self.every)

    def described(self, count: int) -> str:
        """Return what the first `count` points are, and the command that repeats them."""
        from qbench.runs.null_grid import grid_rows

        if self.random:
            options = f" --random {self.random} --seed {self.seed}"
            return f"`qbench validate --null{options}` repeats it: {count} points outside the grid"
        options = f" --every {self.every}" if self.every > 1 else ""
        return (
            f"`qbench validate --null{options}` repeats it: {count} of the grid's {len(grid_rows())} points"
        )


def validate_null(out: Path, python: str | None, rows: NullRows, as_json: bool) -> int:
    """Run points on null GPUs and write a report into a folder; return 0.

    What the null GPU measured is kept there, so that a second run only makes the plans anew. The command goes
    on in a Python with a CUDA build of torch, and there in a process that has the shim. Raises QbenchError
    where either cannot be had.
    """
    _move_to_null_gpu(python)
    from qbench.records.software import library_versions
    from qbench.report.null_grid import summary_table, write_null_grid
    from qbench.runs.null_grid import run_grid

    chosen, found = rows.chosen(), []
    versions = {name: version for name, version in library_versions().items() if version}
    environment = ", ".join(f"{name} {version}" for name, version in versions.items())
    path = out / "null_grid.md"
    for number, result in enumerate(run_grid(chosen, out), 1):
        found.append(_row(result))
        print_note(
            f"[{number}/{len(chosen)}] {result.row.gpu} {result.row.point.label}: {_difference(result)}"
        )
        path = write_null_grid(found, environment, rows.described(len(found)), out)
    if as_json:
        print_json({"versions": versions, "points": found})
        return 0
    print_table(summary_table(found))
    print_text(f"report: {path}")
    return 0


def _move_to_null_gpu(python: str | None) -> None:
    from qbench.measure.cuda_python import cuda_python, run_there
    from qbench.measure.start import module_command
    from qbench.nullgpu.launcher import is_loaded, preload_environment

    other = cuda_python(python)
    if other is not None:
        run_there(other, sys.argv[1:])
    if not is_loaded():
        command = module_command(sys.executable, "qbench", sys.argv[1:])
        os.execve(command[0], command, {**os.environ, **preload_environment()})


def _row(result: GridResult) -> GridValues:
    """Return a result as one flat row of the report."""
    row: GridValues = {
        **asdict(result.row),
        "planned_outcome": result.planned.outcome,
        "null_outcome": result.on_null.outcome,
        "phase": result.on_null.phase,
        "is_equal": result.is_equal,
        "difference": _difference(result),
    }
    for name in (
        "static_bytes",
        "peak_allocated_bytes",
        "peak_reserved_bytes",
        "requested_bytes",
        "free_bytes",
    ):
        row[f"planned_{name}"] = result.planned.figures.get(name)
        row[f"null_{name}"] = result.on_null.figures.get(name)
    row["reason"] = result.planned.reason or result.on_null.reason
    return row


def _difference(result: GridResult) -> str:
    """Return in words what differs: nothing, the outcome, or bytes by figure."""
    if result.is_equal:
        return "none"
    if result.planned.outcome != result.on_null.outcome:
        return f"planned {result.planned.outcome}, ran {result.on_null.outcome}"
    return ", ".join(f"{name} {value:+}" for name, value in result.differences.items() if value) or "phase"
