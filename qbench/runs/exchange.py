"""A scenario whose measurements others carry to machines: requests go out as files, records come back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qbench.errors import RecordError
from qbench.measure.environment import process_settings
from qbench.measure.executors.local import LocalExecutor
from qbench.measure.request import request_of
from qbench.measure.task import Task
from qbench.records.files import write_whole
from qbench.records.lines import encoded
from qbench.records.record import Record
from qbench.records.store import RunStore, each_record, open_store, read_records
from qbench.runs.run import Progress, Watcher, reasons, run_scenario
from qbench.scenario.schema import Device, Point, Scenario

POINT_SUFFIX = ".point.json"
RESULT_SUFFIX = ".result.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What went in and out."""

    progress: Progress
    """Of the plans, which are made here."""
    taken: list[Record]
    """Records that were found and are now in the run folder."""
    left: int
    """Measurements still to be made, each now a file."""
    notices: list[str]
    """Which files were left alone, and why."""


def exchange(
    scenario: Scenario, points: tuple[Point, ...], folder: Path, device: Device, files: Path, watch: Watcher
) -> Exchange:
    """Take the results in `files` into the run folder, plan what has no plan, and ask for the rest.

    Each measurement to be made becomes a `.point.json` in `files`; those of finished ones go away, results
    stay. A result counts on whichever machine it was made. Raises RecordError when a folder cannot be
    written.
    """
    try:
        files.mkdir(parents=True, exist_ok=True)
        with open_store(folder) as store:
            taken, notices = _take(store, points, files)
            notices += [store.notice] if store.notice else []
        progress = run_scenario(
            scenario, points, folder, device, LocalExecutor(), watch, any_machine=True, kinds={"plan"}
        )
        left = _ask(scenario, points, folder, device, files)
    except OSError as error:
        raise RecordError(f"{files}: cannot be written: {error.strerror}; choose another folder") from error
    return Exchange(progress=progress, taken=taken, left=left, notices=notices)


def _take(store: RunStore, points: tuple[Point, ...], files: Path) -> tuple[list[Record], list[str]]:
    """Append each result that is not in the store; return those, and what was wrong with others."""
    known = {hash(encoded(record)) for record in each_record(store.folder)}
    wanted = {point.point_id for point in points}
    taken, notices = [], []
    for file in sorted(files.glob(f"*{RESULT_SUFFIX}")):
        try:
            records = read_records(file)
        except RecordError as error:
            notices.append(str(error))
            continue
        for record in records:
            if record.point_id not in wanted:
                notices.append(f"{file}: {record.point.label} is not a point of this scenario; left out")
            elif hash(encoded(record)) not in known:
                store.append(record)
                taken.append(record)
    return taken, notices


def _ask(scenario: Scenario, points: tuple[Point, ...], folder: Path, device: Device, files: Path) -> int:
    """Write a file for each measurement that is to be made; return how many there are.

    Older ones of this scenario go away. The folder may hold those of others, so the names begin with its own.
    """
    own = re.compile(rf"{re.escape(scenario.name)}-\d{{5,}}-[0-9a-f]+-\d+{re.escape(POINT_SUFFIX)}")
    for file in files.iterdir():
        if own.fullmatch(file.name):
            file.unlink()
    count = 0
    for count, task in enumerate(_open_tasks(scenario, points, folder, device), start=1):
        # In the order of names, repeats are the outer loop.
        name = f"{scenario.name}-{count:05d}-{task.point.point_id}-{task.repeat + 1}{POINT_SUFFIX}"
        request = request_of(task, scenario.name, process_settings())
        write_whole(files / name, request.to_json(), "choose another folder")
    return count


def _open_tasks(
    scenario: Scenario, points: tuple[Point, ...], folder: Path, device: Device
) -> Iterator[Task]:
    for job, reason in reasons(scenario, points, folder, device, any_machine=True):
        if reason is not None and job.repeat is not None:
            yield Task(point=job.point, device=device, settings=scenario.measure, repeat=job.repeat)
