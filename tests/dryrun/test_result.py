"""What a record says of what the processes reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from qbench.cli.main import main
from qbench.comparison.check import check
from qbench.dryrun.result import NEVER_USED, NO_STEP, Ran, last_lines, record_of
from qbench.records.record import Record, record_from_dict
from qbench.records.store import open_store, read_records
from qbench.report.export import write_report
from qbench.words.dryrun import dry_run_lines, dry_run_sentence
from tests.dryrun.reports import MIB, OOM, ran, report


def made(run: Ran) -> Record:
    """Return the record of a run as a reader finds it."""
    return record_from_dict(record_of(run, "dryrun-1").to_dict(), "here")


def test_the_numbers_are_those_of_the_allocator() -> None:
    record = made(ran([report()]))
    assert (record.kind, record.outcome, record.device, record.card) == ("dryrun", "ok", "null", "RTX 4090")
    assert record.metrics["static_bytes"] == 3 * MIB
    assert record.metrics["peak_allocated_bytes"] == 8 * MIB
    assert record.metrics["peak_reserved_bytes"] == 10 * MIB
    assert record.metrics["host_time_s"] == [0.5] * 3
    # What the allocator did not split, 8 - 7 MiB, is with the temporaries.
    assert record.breakdown_bytes["temporaries"] == 5 * MIB
    assert sum(record.breakdown_bytes.values()) == 8 * MIB
    assert record.peak_at == {"phase": "backward", "op": None, "module": "A.forward"}
    assert record.alive[0]["place"] == "lib/a.py:3"
    assert dict(record.versions) == {"torch": "2.13.0"}


def test_the_record_has_no_settings_that_the_program_never_had() -> None:
    run = record_of(ran([report()]), "dryrun-1")
    command = ["python", "train.py"]
    assert run.to_dict()["point"] == {"model": "train.py", "program": {"command": command, "gpus": 1}}
    assert made(ran([report()])).point == run.point


def test_the_work_of_an_update_has_a_planned_time() -> None:
    # 4096 x 4096 x 4096 in bf16, twice: 2 x 4096^3 flops each, of which an RTX 4090 does 165.2 T a second.
    cost = {"op": "mm", "kind": "matmul", "dtype": "bf16", "flops": 2 * 4096**3, "read_bytes": 2 * 4096**2}
    cost |= {"written_bytes": 2 * 4096**2, "shape": [1, 4096, 4096, 4096], "layout": "nt"}
    rows = [{"cost": cost, "phase": "forward", "times": 2}]
    record = made(ran([report(work=rows)]))
    at_peak = 2 * 2 * 4096**3 / 165.2e12
    seconds = record.metrics["step_time_s"]
    assert seconds is not None
    assert at_peak < seconds < 2 * at_peak
    time = record.detail["time"]
    assert time is not None
    assert time["bound"] == "compute"
    least, most = time["range_s"]
    assert least <= seconds <= most
    assert any("planned time of an update" in line for line in dry_run_lines(record))


def test_a_report_of_dry_runs_begins_with_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_store(tmp_path) as store:
        store.append(record_of(ran([report()]), "dryrun-1"))
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("python train.py on RTX 4090 (dry run on a null GPU) fits")


def test_a_launcher_that_failed_is_not_what_failed() -> None:
    tail = "ValueError: too long\nsubprocess.CalledProcessError: Command 'x' returned 1"
    assert made(ran([report(ended="exit")], 1, tail)).error_line.endswith("ValueError: too long")


def test_of_several_ranks_the_largest_counts() -> None:
    record = made(ran([report(), report(rank=1, reserved=12)], gpus=2))
    assert record.peak_reserved_bytes == 12 * MIB
    assert [(rank["rank"], rank["peak_reserved_bytes"]) for rank in record.ranks] == [
        (0, 10 * MIB),
        (1, 12 * MIB),
    ]
    assert record.point.label == "python train.py on 2 GPUs"
    assert record.point.point_id != made(ran([report()])).point.point_id


@pytest.mark.parametrize(
    ("run", "outcome", "error"),
    [
        (ran([report(ended="exit")]), "ok", ""),
        (ran([report(steps=0, ended="exit")]), "error", NO_STEP),
        (ran([]), "error", NEVER_USED),
        (ran([report(ended="running")], None), "timeout", "the program timed out; raise --timeout"),
        (ran([report(ended="running")], -11), "crashed", "the program was ended by signal 11"),
        (
            ran([report(ended="exit")], 1, "Traceback\nValueError: no"),
            "error",
            "the program ended with exit code 1: ValueError: no",
        ),
        (
            ran([report(ended="exit", steps=0, ooms=[OOM])], 1, "x\nCUDA out of memory. Tried to allocate"),
            "oom",
            "CUDA out of memory. Tried to allocate",
        ),
        # It caught the failure, went on with a smaller batch and made its steps.
        (ran([report(ooms=[OOM])]), "ok", ""),
        # Rank 1 ran out of memory, whatever became of rank 0.
        (
            ran([report(ended="running"), report(rank=1, steps=0, ended="exit", ooms=[OOM])], 1),
            "oom",
            "out of memory",
        ),
    ],
)
def test_outcomes(run: Ran, outcome: str, error: str) -> None:
    record = made(run)
    assert (record.outcome, record.error) == (outcome, error)


def test_out_of_memory_says_where() -> None:
    record = made(ran([report(ended="exit", steps=0, ooms=[OOM])], 1))
    assert record.oom is not None
    assert (record.oom["requested_bytes"], record.oom["free_bytes"]) == (5 * MIB, MIB)
    assert dry_run_sentence(record) == (
        "python train.py on RTX 4090 (dry run on a null GPU) runs out of memory in the first step: 5.0 MiB "
        "requested, 1.0 MiB free, by lib/a.py:3 A.forward."
    )
    assert "  your program: train.py:7 <module>" in dry_run_lines(record)


def test_a_program_that_fails_shows_its_last_lines() -> None:
    record = made(ran([report(ended="exit", steps=0)], 1, "one\n10%\r50%\r100%\n\nValueError: no\n"))
    assert record.stderr_tail == "one\n100%\nValueError: no"
    assert any("kernels do nothing" in line for line in dry_run_lines(record))
    assert last_lines("a\nb\n", 1) == "b"


def test_records_are_stored_reported_and_checked(tmp_path: Path) -> None:
    before, now = made(ran([report()])), made(ran([report(reserved=20)]))
    with open_store(tmp_path) as store:
        store.append(before)
    assert read_records(tmp_path) == [before]
    text = write_report(read_records(tmp_path), tmp_path / "report", "mine")["md"].read_text()
    assert "dry run on a null GPU" in text
    assert "Dry runs of programs" in text
    assert "Nothing was measured" not in text
    assert check([before], [before]).exit_code(False) == 0
    found = {finding.metric: finding.verdict for finding in check([before], [now]).findings}
    assert found["peak_allocated_bytes"] == "same"
    assert found["peak_reserved_bytes"] == "worse"
