"""Dry runs of training frameworks in an environment that has them, beside plans: reports/dryrun.

    python -m benchmarks.frameworks /path/to/venv --suite axolotl --source /path/to/checkout [--only NAME...]

The environment needs a CUDA build of torch and what environments/SUITE.txt names. The checkout, of the
framework's repository, has the configs; nothing of it is kept. Cases that are run replace their records in
the folder; the others stay.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

from benchmarks.frameworks.cases import CASES, STAND_INS, Case
from benchmarks.frameworks.report import report_text
from qbench.catalog.gpus import find_gpu
from qbench.cli.target import TargetRequest, read_asked
from qbench.dryrun.run import Request, Rows, dry_run
from qbench.errors import QbenchError
from qbench.planner.plan import plan
from qbench.records.record import Record
from qbench.records.store import RECORDS_FILE, read_records, write_records
from qbench.scenario.expand import point_from

PLANS_FILE = "plans.jsonl"
TIMEOUT_S = 3000


def run(case: Case, environment: Path, source: Path | None) -> tuple[Record, float]:
    """Return the record of a case, and the seconds from the command to its end."""
    folders = (str(environment / "bin"), os.environ["PATH"])
    variables = {
        **os.environ,
        "PATH": os.pathsep.join(folders),
        "PYTHONPATH": str(STAND_INS),
        "HF_HUB_CACHE": "none",
        "AXOLOTL_DATASET_NUM_PROC": "1",
    }
    with tempfile.TemporaryDirectory(prefix="qbench-frameworks-") as folder, chdir(folder):
        words = list(case.words)
        if case.config and source is not None:
            shutil.copy(source / case.config, folder)
            words = [Path(word).name if case.config.endswith(word) else word for word in words]
        asked = Request(
            command=[str(environment / "bin" / words[0]), *words[1:]],
            gpu=find_gpu(case.gpu),
            gpus=case.gpus,
            steps=case.steps,
            rank_only=case.rank_only,
            timeout_s=TIMEOUT_S,
            models=case.models,
            synthetic=Rows(lengths=[case.seq_len]),
        )
        begun = time.monotonic()
        return dry_run(asked, Path(folder), variables), time.monotonic() - begun


def planned(case: Case, source: Path | None) -> Record | None:
    """Return the plan of the same step or config on the same card, None where qbench models none."""
    card = find_gpu(case.gpu)
    if case.plan:
        return plan(point_from({}, case.plan), "cuda", [card])
    if not case.config or source is None:
        return None
    try:
        asked = read_asked(TargetRequest(name=None, config=source / case.config))
        made = plan(asked.points[0], "cuda", [card])
    except QbenchError as error:
        print(f"{case.name}: no plan: {error}", flush=True)
        return None
    return replace(made, detail={**made.detail, "unmodelled": sorted(asked.unmodelled)})


def main() -> None:
    """Run the cases and write records and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frameworks", description=__doc__)
    parser.add_argument("environment", type=Path, help="virtual environment of the frameworks")
    parser.add_argument("--suite", default="trl", choices=sorted({case.suite for case in CASES}))
    parser.add_argument("--source", type=Path, help="checkout of the framework, for its configs")
    parser.add_argument("--plans", action="store_true", help="only plan again, and write the report")
    parser.add_argument("--only", nargs="*", metavar="NAME", choices=[case.name for case in CASES])
    parser.add_argument("--out", type=Path, default=Path("reports/dryrun"))
    given = parser.parse_args()
    out = given.out.resolve()
    of_suite = [case for case in CASES if case.suite == given.suite]
    for case in (each for each in of_suite if not given.only or each.name in given.only):
        if not given.plans:
            record, seconds = run(case, given.environment.resolve(), given.source)
            print(f"{case.name}: {record.outcome} in {seconds:.0f} s {record.error_line}", flush=True)
            _keep(out / RECORDS_FILE, case, record)
        _keep(out / PLANS_FILE, case, planned(case, given.source))
    text = report_text(_stored(out / RECORDS_FILE), _stored(out / PLANS_FILE))
    (out / "frameworks.md").write_text(text, encoding="utf-8")


def _stored(file: Path) -> dict[str, Record]:
    return {each.run_id: each for each in read_records(file)} if file.exists() else {}


def _keep(file: Path, case: Case, record: Record | None) -> None:
    if record is not None:
        stored = _stored(file) | {case.name: replace(record, run_id=case.name)}
        write_records(file, [stored[each.name] for each in CASES if each.name in stored])


if __name__ == "__main__":
    main()
