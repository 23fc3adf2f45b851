from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qbench.errors import RecordError
from qbench.records.record import Record
from qbench.records.store import encoded, open_store, read_records, read_stored
from qbench.scenario.schema import LoraSettings, Point

CHILD = """
import os, resource, signal, sys
from pathlib import Path
from qbench.errors import RecordError
from qbench.records.record import Record
from qbench.records.store import open_store, read_records
from qbench.scenario.schema import Point

folder = Path(sys.argv[1])

def record(number):
    return Record(run_id=f"run-{number}", point=Point(model="m"), kind="plan", outcome="ok",
                  metrics={}, detail={"text": "x" * 20_000})
"""


def started(script: str, folder: Path) -> subprocess.Popen[str]:
    """Start a process that runs `script` on a run folder; its `record(number)` is a line of 20 kB."""
    command = [sys.executable, "-c", CHILD + script, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def output_of(script: str, folder: Path) -> list[str]:
    process = started(script, folder)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return output.splitlines()


def record(number: int = 0, **changes: Any) -> Record:
    values: dict[str, Any] = {"kind": "measurement", "outcome": "ok", "metrics": {"loss": [1.5, 2.5]}}
    return Record(run_id=f"run-{number}", point=Point(model="m"), **(values | changes))


def written(folder: Path, count: int) -> Path:
    """Write `count` records and return their file."""
    with open_store(folder) as store:
        for number in range(count):
            store.append(record(number))
    return store.path


def run_ids(path: Path) -> list[str]:
    return [stored.run_id for stored in read_records(path)]


def test_what_is_appended_is_read_back_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    records = [record(number, detail={"text": "Grüße\n\x00\ud800"}) for number in range(3)]
    with open_store(folder) as store:
        assert store.notice is None
        for item in records[:2]:
            store.append(item)
        assert read_records(folder) == records[:2]
    with open_store(folder) as store:
        store.append(records[2])
    assert read_records(folder) == read_records(store.path) == records
    assert store.path.read_bytes().count(b"\n") == 3


def test_a_line_is_strict_json_in_which_not_a_number_is_null() -> None:
    line = encoded(record(metrics={"loss": [1.0, float("nan")], "flops": float("inf"), "pair": (1, 2)}))
    values = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert values["metrics"] == {"loss": [1.0, None], "flops": None, "pair": [1, 2]}
    assert line.endswith(b"}\n")


def test_a_second_writer_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    script = """
with open_store(folder) as store:
    store.append(record(0))
    print("open", flush=True)
    sys.stdin.readline()
"""
    process = started(script, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    with pytest.raises(RecordError, match=f"process {process.pid} is writing there; wait for it"):
        open_store(tmp_path)
    assert run_ids(tmp_path) == ["run-0"]
    process.communicate("go on\n", timeout=300)
    with open_store(tmp_path) as store:
        store.append(record(1))
    assert run_ids(tmp_path) == ["run-0", "run-1"]


def removed_between(folder: Path, remove: Callable[[Path], object], *, last: bool = False) -> None:
    """Append a record, remove the file in some way, and append another unless the first is the last."""
    with open_store(folder) as store:
        store.append(record(0))
        remove(store.path)
        if not last:
            store.append(record(1))


def test_a_file_that_was_moved_during_the_run_ends_it(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.jsonl"
    with pytest.raises(RecordError, match="was moved during the run; its records are in the moved file"):
        removed_between(tmp_path / "run", lambda file: file.rename(elsewhere))
    assert run_ids(elsewhere) == ["run-0", "run-1"]


def test_a_file_that_was_removed_during_the_run_is_written_again_and_ends_it(tmp_path: Path) -> None:
    for remove in (Path.unlink, lambda file: shutil.rmtree(file.parent)):
        with pytest.raises(RecordError, match="was removed during the run; its records were written again"):
            removed_between(tmp_path / "run", remove)
        assert run_ids(tmp_path / "run") == ["run-0", "run-1"]
        shutil.rmtree(tmp_path / "run")


def test_a_file_that_another_took_the_place_of_is_written_beside_it(tmp_path: Path) -> None:
    def replace(file: Path) -> None:
        file.unlink()
        file.write_text("another's")

    with pytest.raises(RecordError, match=r"written again to .*records\.saved\.jsonl"):
        removed_between(tmp_path, replace)
    assert run_ids(tmp_path / "records.saved.jsonl") == ["run-0", "run-1"]
    assert (tmp_path / "records.jsonl").read_text() == "another's"
    with pytest.raises(RecordError, match=r"written again to .*records\.saved\.2\.jsonl"):
        removed_between(tmp_path / "again", lambda file: (removed_before(file), replace(file)))
    assert (tmp_path / "again" / "records.saved.jsonl").read_text() == "rescued before"
    assert run_ids(tmp_path / "again" / "records.saved.2.jsonl") == ["run-0", "run-1"]


def removed_before(file: Path) -> None:
    file.with_name("records.saved.jsonl").write_text("rescued before")


@contextlib.contextmanager
def closed_off(folder: Path) -> Iterator[None]:
    """Let this process not look into a folder meanwhile; root may look into any but as another user."""
    folder.chmod(0)
    if os.geteuid():
        yield
    else:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    folder.chmod(0o700)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_folder_that_cannot_be_looked_into_for_a_while_does_not_end_the_run(tmp_path: Path) -> None:
    with open_store(tmp_path / "run") as store:
        with closed_off(tmp_path / "run"):
            store.append(record(0))
        store.append(record(1))
    assert run_ids(tmp_path / "run") == ["run-0", "run-1"]


def test_a_file_that_was_removed_after_the_last_record_is_no_quiet_end(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="removed during the run"):
        removed_between(tmp_path, Path.unlink, last=True)
    assert run_ids(tmp_path) == ["run-0"]


def test_a_lock_that_is_a_link_is_refused_and_its_target_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("text")
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("records.writer", "records.lock"):
        (folder / name).symlink_to(target)
        if name == "records.writer":
            open_store(folder).close()
            assert not (folder / name).is_symlink()
            (folder / "records.lock").unlink()
    with pytest.raises(RecordError, match=r"records\.lock: is a symbolic link, .*; remove it"):
        open_store(folder)
    assert target.read_text() == "text"


def test_a_lock_with_content_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "records.lock").write_text("text")
    open_store(tmp_path).close()
    assert (tmp_path / "records.lock").read_text() == "text"


def test_a_holder_that_left_no_number_is_another_process(tmp_path: Path) -> None:
    with open_store(tmp_path):
        (tmp_path / "records.writer").unlink()
        with pytest.raises(RecordError, match="another process is writing there"):
            open_store(tmp_path)
    assert not (tmp_path / "records.writer").exists()


def test_the_same_process_cannot_open_a_folder_twice_but_again_after_closing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(RecordError, match=f"process {os.getpid()} is writing there"):
        open_store(tmp_path)
    store.close()
    store.close()
    open_store(tmp_path).close()


def test_a_killed_writer_loses_nothing_that_it_had_appended(tmp_path: Path) -> None:
    script = """
number = len(read_records(folder)) if (folder / "records.jsonl").exists() else 0
with open_store(folder) as store:
    while True:
        store.append(record(number))
        print(number, flush=True)
        number += 1
"""
    seed = random.Random(3)
    for _ in range(4):
        process = started(script, tmp_path)
        assert process.stdout is not None
        acknowledged = [int(process.stdout.readline())]
        time.sleep(seed.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in process.communicate(timeout=300)[0].splitlines()]
        with open_store(tmp_path):
            pass
        stored = run_ids(tmp_path)
        assert stored == [f"run-{number}" for number in range(len(stored))]
        assert acknowledged[-1] < len(stored)


@pytest.mark.parametrize("kept_bytes", [1, 40, -2])
def test_a_torn_last_line_is_moved_away_by_a_writer_and_skipped_by_a_reader(
    tmp_path: Path, kept_bytes: int
) -> None:
    file = written(tmp_path, 2)
    last = encoded(record(2))[:kept_bytes]
    with file.open("ab") as stream:
        stream.write(last)

    stored = read_stored(tmp_path)
    assert [item.run_id for item in stored.records] == ["run-0", "run-1"]
    assert stored.torn == (f"{file}:3", len(last))

    with open_store(tmp_path) as store:
        text = f"the last line was torn ({len(last)} bytes); it was moved to records.jsonl.torn"
        assert store.notice == f"{file}: {text}"
        store.append(record(3))
    assert run_ids(tmp_path) == ["run-0", "run-1", "run-3"]
    assert (tmp_path / "records.jsonl.torn").read_bytes() == last + b"\n"
    assert read_stored(tmp_path).torn is None


def test_a_torn_first_line_leaves_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_bytes(b'{"schema')
    assert read_records(tmp_path) == []
    open_store(tmp_path).close()
    assert (tmp_path / "records.jsonl").read_bytes() == b""


def test_a_whole_last_record_without_its_line_end_is_kept(tmp_path: Path) -> None:
    file = written(tmp_path, 2)
    file.write_bytes(file.read_bytes().rstrip(b"\n"))
    assert run_ids(tmp_path) == ["run-0", "run-1"]
    with open_store(tmp_path) as store:
        assert store.notice == f"{file}: the last record lacked its line end, which was added"
        store.append(record(2))
    assert run_ids(tmp_path) == ["run-0", "run-1", "run-2"]
    assert not (tmp_path / "records.jsonl.torn").exists()


def test_a_full_disk_leaves_no_half_line_and_the_store_goes_on_when_there_is_room(tmp_path: Path) -> None:
    # A limit on the size of files makes the kernel write a part of the line and then refuse.
    script = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
with open_store(folder) as store:
    try:
        for number in range(5):
            store.append(record(number))
    except RecordError as error:
        print(error)
        print(store.path.stat().st_size % len(store.path.read_bytes().splitlines(keepends=True)[0]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    store.append(record(9))
"""
    message, rest = output_of(script, tmp_path)
    assert message.startswith(f"{tmp_path / 'records.jsonl'}: record {record().point_id} was not written: ")
    assert message.endswith("File too large; earlier records are safe, so make room and run again")
    assert rest == "0"
    # Two lines of 20 kB fit under 50,000 bytes.
    assert run_ids(tmp_path) == ["run-0", "run-1", "run-9"]


def test_a_folder_that_cannot_be_written_is_an_error_with_its_reason() -> None:
    script = """
import filelock  # and what it imports, of a Python in a folder that only the superuser may read
if os.geteuid() == 0:
    os.seteuid(65534)  # the superuser may write everywhere
for target in (folder, folder / "inner"):
    try:
        open_store(target)
    except RecordError as error:
        print(error)
"""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        assert output_of(script, folder) == [
            f"{folder}: cannot be written: Permission denied; choose another folder",
            f"{folder / 'inner'}: cannot be written: Permission denied; choose another folder",
        ]


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    file = written(tmp_path, 1)
    with pytest.raises(RecordError, match=r"records\.jsonl: cannot be written: File exists"):
        open_store(file)
    with pytest.raises(RecordError, match="cannot be written: Not a directory"):
        open_store(file / "inner")


def test_short_writes_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    with open_store(tmp_path) as store:
        monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data[:100])))
        store.append(record(0))
        store.append(record(1))
    assert run_ids(tmp_path) == ["run-0", "run-1"]


def test_an_interrupt_within_a_line_takes_the_half_line_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    sizes = iter([100])

    def interrupted(descriptor: int, data: memoryview) -> int:
        for size in sizes:
            return write(descriptor, data[:size])
        raise KeyboardInterrupt

    with open_store(tmp_path) as store:
        store.append(record(0))
        monkeypatch.setattr(os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.append(record(1))
        monkeypatch.undo()
        store.append(record(2))
    assert run_ids(tmp_path) == ["run-0", "run-2"]


def test_an_interrupt_after_the_line_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    with open_store(tmp_path) as store:
        monkeypatch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.append(record(0))
    assert run_ids(tmp_path) == ["run-0"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"schema_version": 1, "run_id"\n', "not JSON: "),
        (b"\x00\x00\x00\n", "not JSON: "),
        (b'{"text": "\xff"}\n', "not JSON: "),
        (b"[1]\n", r"\[1\] is not a record; one JSON object per line is expected"),
        (b"{}\n", "schema_version is None; this is not a qbench record"),
        (b'{"schema_version": 3}\n', "schema_version 3 is newer than 2; update qbench"),
    ],
)
def test_a_bad_line_is_named_with_file_and_line(tmp_path: Path, line: bytes, problem: str) -> None:
    file = written(tmp_path, 1)
    file.write_bytes(file.read_bytes() + b"\n" + line)  # line 2 is empty and does not matter
    with pytest.raises(RecordError, match=f"records.jsonl:3: {problem}"):
        read_records(tmp_path)


def test_what_is_not_there_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(
        RecordError, match=r"none: cannot be read: No such file or directory; give a run folder"
    ):
        read_records(tmp_path / "none")
    with pytest.raises(RecordError, match=r"is not a run folder: it has no records\.jsonl"):
        read_records(tmp_path)


def test_ten_thousand_records_are_read_in_order(tmp_path: Path) -> None:
    metrics = {
        "step_time_s": [1 / number for number in range(1, 11)],
        "loss": [3 / number for number in range(1, 11)],
        "peak_allocated_bytes": 1 << 34,
        "breakdown_bytes": {f"category{number}": 1 << number for number in range(9)},
    }
    environment = {f"library{number}": f"{number}.0.1" for number in range(30)}
    lines = [
        encoded(
            Record(
                run_id="run",
                point=Point(model="m", lora=LoraSettings(r=rank)),
                kind="measurement",
                outcome="ok",
                metrics=metrics,
                environment=environment,
            )
        )
        for rank in range(1, 10_001)
    ]
    file = tmp_path / "records.jsonl"
    file.write_bytes(b"".join(lines))
    records = read_records(file)
    assert [item.point.lora.r for item in records if item.point.lora] == list(range(1, 10_001))
