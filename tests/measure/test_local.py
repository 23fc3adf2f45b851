"""Real processes that end in every way a worker can end; whatever happens to one, the next is measured."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny import write_tiny_model

from qbench.measure.executors.local import LocalExecutor
from qbench.measure.task import Measurement, Task
from qbench.scenario.schema import MeasureSettings, Point
from tests.measure import faults

ROOT = Path(__file__).parents[2]
LONG_S = 60.0
CGROUP_BYTES = 64 << 20


@pytest.fixture(scope="module")
def executor() -> LocalExecutor:
    return LocalExecutor()


def run(executor: LocalExecutor, work: Callable[[], Any], timeout_s: float = LONG_S) -> Measurement:
    return executor.run(work, timeout_s, "cpu")


def test_work_runs_in_a_process_of_its_own(executor: LocalExecutor):
    first, second = (run(executor, faults.tells_its_surroundings).detail for _ in range(2))
    assert len({first["pid"], second["pid"], os.getpid()}) == 3
    assert first["group"] == first["pid"]


def test_a_worker_for_the_cpu_sees_no_gpu_and_has_torch_loaded(executor: LocalExecutor):
    detail = run(executor, faults.tells_its_surroundings).detail
    assert detail["visible"] == ""
    assert detail["torch_is_loaded"]


@pytest.mark.parametrize(
    ("fault", "timeout_s", "outcome", "error"),
    [
        (faults.fine, LONG_S, "ok", ""),
        (faults.prints_garbage, LONG_S, "ok", ""),
        (faults.raises, LONG_S, "error", "ValueError: the tensor is crooked"),
        (faults.hangs, 0.5, "timeout", "no result within 0.5 s"),
        (faults.hangs_with_the_gil, 0.5, "timeout", "no result within 0.5 s"),
        (faults.hangs_while_it_answers, 0.5, "timeout", "no result within 0.5 s"),
        (faults.segfaults, LONG_S, "crashed", "SIGSEGV"),
        (faults.is_killed, LONG_S, "crashed", "SIGKILL"),
        (faults.is_killed_while_it_answers, LONG_S, "crashed", "SIGKILL"),
        (faults.exits, LONG_S, "crashed", "exit code 3"),
        (faults.exits_as_bitsandbytes_does, LONG_S, "oom", "bitsandbytes ended the worker"),
        (faults.sends_garbage, LONG_S, "crashed", "not a measurement"),
        (faults.allocates_in_python, LONG_S, "oom", "MemoryError"),
    ],
)
def test_each_ending_is_an_outcome_and_the_next_is_measured(
    executor: LocalExecutor, fault: Callable[[], Any], timeout_s: float, outcome: str, error: str
):
    start = time.monotonic()
    done = run(executor, fault, timeout_s)
    took = time.monotonic() - start
    assert done.outcome == outcome
    assert error in done.detail.get("error", "")
    assert run(executor, faults.fine) == faults.fine()
    assert took < LONG_S / 2


def test_the_last_lines_of_a_dead_worker_are_kept(executor: LocalExecutor):
    assert run(executor, faults.segfaults).detail["stderr_tail"] == "about to read address 0\n"
    assert run(executor, faults.hangs, 0.5).detail["stderr_tail"] == "about to hang\n"


def test_an_error_keeps_its_traceback(executor: LocalExecutor):
    assert "in raises" in run(executor, faults.raises).detail["traceback"]


def test_work_that_the_worker_cannot_load_is_an_error_of_its_own(
    executor: LocalExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "passing_module.py").write_text("def work():\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import passing_module

    work = passing_module.work
    (tmp_path / "passing_module.py").unlink()
    done = run(executor, work)
    assert done.outcome == "error"
    assert "No module named 'passing_module'" in done.detail["error"]


def test_a_model_that_does_not_fit_into_the_address_space_is_oom(executor: LocalExecutor, tmp_path: Path):
    # Logits in fp32 take batch 64 x seq 256 x vocabulary 32,768 x 4 B = 2 GiB; the worker has 256 MiB.
    model = write_tiny_model(tmp_path / "model", "HuggingFaceTB/SmolLM2-135M", vocab_size=32_768)
    point = Point.model_validate(
        {"model": model, "train": {"per_device_train_batch_size": 64, "seq_len": 256}, "precision": "fp32"}
    )
    task = Task(point=point, device="cpu", settings=MeasureSettings(steps=1), repeat=0)
    done = run(executor, partial(faults.with_little_room, task))
    assert done.outcome == "oom", done.detail
    assert done.detail["oom"]["phase"] in ("forward", "loss")
    assert done.detail["oom"]["requested_bytes"] > faults.ROOM_BYTES // 64
    assert done.detail["oom"]["free_bytes"] is None
    assert done.environment["device"] == "cpu"


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """Yield a memory cgroup of CGROUP_BYTES, of version 1 or 2; skip where none may be made."""
    for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(root) / f"qbench-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(CGROUP_BYTES))
            yield group
            return
        except OSError:
            continue
        finally:
            group.rmdir()
    pytest.skip("no memory cgroup may be made here")


def test_a_worker_that_the_kernel_ends_for_want_of_memory_is_oom(executor: LocalExecutor, cgroup: Path):
    done = run(executor, partial(faults.fills_a_cgroup, str(cgroup), 4 * CGROUP_BYTES))
    assert done.outcome == "oom", done.detail
    assert "the kernel ended the worker" in done.detail["error"]
    assert run(executor, faults.fine) == faults.fine()


def test_the_children_of_a_worker_that_ran_out_of_time_end_with_it(executor: LocalExecutor, tmp_path: Path):
    pid_file = tmp_path / "child"
    done = run(executor, partial(faults.leaves_a_child, str(pid_file)), 0.5)
    assert done.outcome == "timeout"
    assert ended_within(1.0, int(pid_file.read_text()))


@pytest.fixture
def freezer() -> Iterator[Path]:
    """Yield a cgroup whose processes hear no signal once it is frozen; skip where none may be made."""
    group = Path("/sys/fs/cgroup/freezer") / f"qbench-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no freezer cgroup of version 1 may be made here")
    yield group
    (group / "freezer.state").write_text("THAWED")
    deadline = time.monotonic() + 120
    while (group / "cgroup.procs").read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    group.rmdir()


def test_a_worker_that_hears_no_signal_holds_the_runner_no_longer_than_the_others(
    executor: LocalExecutor, freezer: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("qbench.measure.executors.local.END_GRACE_S", 0.5)
    done = run(executor, partial(faults.is_frozen, str(freezer)), 0.5)
    assert done.outcome == "timeout"
    assert "the worker cannot be killed: it is stuck in a driver" in done.detail["error"]
    assert run(executor, faults.fine) == faults.fine()


def test_no_files_are_left_behind(executor: LocalExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for fault in (faults.fine, faults.segfaults, faults.prints_garbage):
        run(executor, fault)
    assert list(tmp_path.iterdir()) == []


def ended_within(seconds: float, *pids: int) -> bool:
    """Say whether all processes end within a time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(map(is_running, pids)):
            return True
        time.sleep(0.02)
    return False


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def start_runner(work: str) -> subprocess.Popen[str]:
    """Start a program that runs one piece of work of `faults`; without the heavy libraries it starts fast."""
    code = (
        "from functools import partial\n"
        "from qbench.measure.executors.local import LocalExecutor\n"
        "from tests.measure import faults\n"
        "executor = LocalExecutor(preload=())\n"
        f"print(executor.run({work}, 60, 'cpu').outcome)\n"
        "print(executor.run(faults.fine, 60, 'cpu').outcome)\n"
    )
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("holding_the_gil", [False, True])
def test_worker_and_fork_server_end_with_a_killed_runner(tmp_path: Path, holding_the_gil: bool):
    pid_file = tmp_path / "pids"
    with start_runner(f"partial(faults.notes_itself, {str(pid_file)!r}, {holding_the_gil})") as runner:
        deadline = time.monotonic() + 300
        while not pid_file.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        pids = [int(pid) for pid in pid_file.read_text().split()]
        assert all(map(is_running, pids))
        runner.send_signal(signal.SIGKILL)
        assert ended_within(120.0, *pids)


def test_a_killed_fork_server_costs_one_point():
    with start_runner("faults.kills_the_fork_server") as runner:
        out, err = runner.communicate(timeout=300)
    assert out.split() == ["crashed", "ok"], err
