"""Make an environment, repeat its published runs on the null GPU, and write the report."""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

from benchmarks.published_null.environments import ENVIRONMENTS, INSIDE, Environment
from benchmarks.published_null.report import COLUMNS, csv_row, report
from benchmarks.published_null.rows import Answer, Compared, Run, compare, counts, read_runs
from qbench.catalog.models import find_model
from qbench.nullgpu.environment import AddressOrder


def repeat(environment: Environment, python: Path, runs: list[Run], order: AddressOrder) -> Iterator[Answer]:
    """Yield what the null GPU says of each run, when it hands out addresses in that order."""
    command = [python, INSIDE / "serve.py", environment.program]
    variables = environment.variables(python, order)
    with subprocess.Popen(command, env=variables, stdin=PIPE, stdout=PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        for run in runs:
            with tempfile.TemporaryDirectory(prefix="qbench-published-") as folder:
                config = find_model(run.settings["model"]).config
                job = {"settings": run.settings, "config": config, "folder": folder}
                print(json.dumps(job), file=server.stdin, flush=True)
                yield json.loads(server.stdout.readline())
        server.stdin.close()


def _is_settled(run: Run, answers: dict[str, Answer]) -> bool:
    return bool(answers) and all(one.is_equal for one in compare(run, answers))


def write(environment: Environment, name: str, compared: list[Compared], folder: Path) -> Path:
    """Write the report and its CSV file, both of that name; return the former."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(csv_row(one) for one in compared)
    path = folder / f"{name}.md"
    path.write_text(report(environment, name, compared), encoding="utf-8")
    return path


def main() -> None:
    """Repeat the runs of one environment."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published_null", description=__doc__)
    parser.add_argument("environment", choices=list(ENVIRONMENTS))
    parser.add_argument("--rows", type=Path, help="other rows, as a CSV file of the same columns")
    parser.add_argument("--only", nargs="+", metavar="RUN", help="these runs of the file")
    parser.add_argument(
        "--env", type=Path, metavar="FOLDER", help="keep the environment here and use it again"
    )
    parser.add_argument("--out", type=Path, default=Path("reports/nullgpu/published"))
    options = parser.parse_args()
    environment = ENVIRONMENTS[options.environment]
    rows = options.rows or environment.rows_file
    runs = [run for run in read_runs(rows) if not options.only or run.name in options.only]
    folder = options.env or Path(tempfile.mkdtemp(prefix="qbench-environment-"))
    answers: dict[str, dict[str, Answer]] = {}
    try:
        python = environment.make(folder.absolute())
        for order in environment.orders:
            # Another order can only matter to what is not equal yet.
            open_runs = [run for run in runs if not _is_settled(run, answers.get(run.name, {}))]
            for run, answer in zip(open_runs, repeat(environment, python, open_runs, order), strict=True):
                answers.setdefault(run.name, {})[order] = answer
                equal, total = counts(list(compare(run, {order: answer})))
                print(f"{run.name}, {order}: {answer['outcome']}, {equal} of {total} equal", flush=True)
                # What there is stays, whatever ends the runs that follow.
                done = [run for run in runs if run.name in answers]
                found = [one for run in done for one in compare(run, answers[run.name])]
                path = write(environment, rows.stem, found, options.out)
    finally:
        if options.env is None:
            shutil.rmtree(folder, ignore_errors=True)
    print("report:", path)


if __name__ == "__main__":
    main()
