"""`qbench fit` against brute force: every step of a grid planned for Llama-3.1-8B on two cards.

python -m benchmarks.fit_grid --out reports/fit
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from qbench.catalog.gpus import GpuSpec, find_gpu
from qbench.planner.fit import Planner, axis_of, largest, with_value
from qbench.quiet import quiet_libraries
from qbench.records.files import write_whole
from qbench.records.record import Record
from qbench.report.markdown import table_text
from qbench.report.table import Value, plain_table
from qbench.runs.plans import PlanFor, plans
from qbench.scenario.expand import point_from
from qbench.scenario.schema import Point

STEP, MOST = 256, 8192
CARDS = ("RTX 4090", "RTX 4060 Ti 16GB")
POINTS = tuple(
    {"precision": name, "recipe": recipe} for name in ("bf16", "nf4-dq") for recipe in ("peft", "trl")
)


def remembering(gpu: GpuSpec) -> Planner:
    """Return a planner for a card that plans each point once."""
    made: dict[Point, Record] = {}

    def planned(points: Sequence[Point]) -> list[Record]:
        missing = [point for point in points if point not in made]
        made.update(zip(missing, plans(missing, PlanFor(gpus=(gpu,))), strict=True))
        return [made[point] for point in points]

    return planned


TITLES = (
    "Card",
    "Point",
    "Fit",
    "Values it planned",
    "Brute force",
    "Values that fit",
    "Agree, without a gap",
)


def row(gpu: GpuSpec, settings: dict[str, str]) -> tuple[Value, ...]:
    """Return a row of the table: what fit found in how many plans, and all of the grid that fit."""
    planned = remembering(gpu)
    point = point_from({"model": "meta-llama/Llama-3.1-8B"}, settings)
    axis = dataclasses.replace(axis_of(point, "seq_len", STEP), limit=MOST, limited_by="range")
    found = largest(point, axis, planned)
    values = range(STEP, MOST + 1, STEP)
    records = planned([with_value(point, "seq_len", value) for value in values])
    fitting = [v for v, record in zip(values, records, strict=True) if record.fits[0].fits]
    agrees = found.value == (max(fitting) if fitting else None) and fitting == list(values[: len(fitting)])
    name = f"{settings['precision']}, recipe {settings['recipe']}"
    count = f"{len(fitting)} of {len(values)}"
    most, tried = max(fitting, default=None), len(found.probes)
    return gpu.name, name, found.value, tried, most, count, agrees


def main() -> None:
    """Plan the grid and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    quiet_libraries()
    rows = []
    for name in CARDS:
        for settings in POINTS:
            rows.append(row(find_gpu(name), settings))
            print(*rows[-1], flush=True)
    title = (
        f"# Largest sequence of Llama-3.1-8B: `qbench fit` against every multiple of {STEP} up to {MOST:,}"
    )
    write_whole(out / "README.md", f"{title}\n\n{table_text(plain_table(TITLES, rows))}\n")


if __name__ == "__main__":
    main()
