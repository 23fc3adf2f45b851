"""Dry runs of training frameworks in an environment that has them, beside plans: reports/dryrun.

    python -m benchmarks.frameworks /path/to/venv [--only NAME...] [--out reports/dryrun]

The environment needs a CUDA build of torch, and trl, liger-kernel and cut-cross-entropy. Cases that are run
replace their records in the folder; the others stay.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

from benchmarks.frameworks.cases import CASES, Case
from qbench.catalog.gpus import find_gpu
from qbench.dryrun.run import Request, dry_run
from qbench.planner.plan import plan
from qbench.records.record import Record
from qbench.records.store import RECORDS_FILE, read_records, write_records
from qbench.scenario.expand import point_from
from qbench.units import format_bytes


def run(case: Case, environment: Path) -> tuple[Record, float]:
    """Return the record of a case, and the seconds from the command to its end."""
    command = [str(environment / "bin" / case.words[0]), *case.words[1:]]
    variables = {**os.environ, "PATH": f"{environment / 'bin'}:{os.environ['PATH']}", "HF_HUB_CACHE": "none"}
    asked = Request(
        command=command,
        gpu=find_gpu(case.gpu),
        gpus=case.gpus,
        rank_only=case.rank_only,
        timeout_s=1200,
        synthetic=True,
    )
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="qbench-frameworks-") as folder, chdir(folder):
        return dry_run(asked, Path(folder), variables), time.monotonic() - begun


def planned(case: Case) -> Record | None:
    """Return the plan of the same step on the same card, None where qbench models none."""
    if not case.plan:
        return None
    return plan(point_from({}, case.plan), "cuda", [find_gpu(case.gpu)])


def row(case: Case, record: Record) -> str:
    """Return the line of a case in the report."""
    made = planned(case)
    cells = [case.name, record.card, record.outcome, record.peak_allocated_bytes, record.peak_reserved_bytes]
    cells += [None, None] if made is None else [made.peak_allocated_bytes, _error(made, record)]
    load, last = record.phases.get("load"), record.detail.get("host_peak_bytes")
    cells += [load, last, f"{sum(record.raw('host_time_s')[1:]) / 2:.2f}" if record.outcome == "ok" else None]
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(value: object) -> str:
    return "" if value is None else format_bytes(value) if isinstance(value, int) else str(value)


def _error(made: Record, record: Record) -> str | None:
    if made.peak_allocated_bytes is None or not record.peak_allocated_bytes:
        return None
    return f"{100 * (made.peak_allocated_bytes / record.peak_allocated_bytes - 1):+.2f} %"


HEAD = """# Dry runs of training frameworks

Made by `python -m benchmarks.frameworks VENV`. Each program ran as it is for three steps on a null GPU,
weights and tokenizer being stand-ins; the plan is qbench's own, of the same step, where it models one.

| program | card | ended | allocated | reserved | planned | plan's error | loading | host | s a step |
|---|---|---|---:|---:|---:|---:|---:|---:|---:|
"""


def main() -> None:
    """Run the cases and write records and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frameworks", description=__doc__)
    parser.add_argument("environment", type=Path, help="virtual environment of the frameworks")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[case.name for case in CASES])
    parser.add_argument("--out", type=Path, default=Path("reports/dryrun"))
    given = parser.parse_args()
    file = given.out.resolve() / RECORDS_FILE
    stored = {record.run_id: record for record in read_records(file)} if file.exists() else {}
    for case in CASES:
        if given.only is None or case.name in given.only:
            record, seconds = run(case, given.environment.resolve())
            print(f"{case.name}: {record.outcome} in {seconds:.0f} s {record.error_line}", flush=True)
            stored[case.name] = replace(record, run_id=case.name)
            write_records(file, [stored[each.name] for each in CASES if each.name in stored])
    lines = [row(case, stored[case.name]) for case in CASES if case.name in stored]
    (given.out / "frameworks.md").write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
