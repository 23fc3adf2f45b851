"""Other interpreters that end in every way; scripts stand for them, since only their ending counts."""

from __future__ import annotations

import sys
import sysconfig
import time
from pathlib import Path

import pytest

from qbench.errors import MeasureError, QbenchError
from qbench.measure import interpreter
from qbench.measure.interpreter import CodeFolder, Interpreter, _run, inspect, measure_in, run_qbench
from qbench.measure.sampler import Sampler
from qbench.measure.start import code_command
from qbench.measure.task import Task
from qbench.scenario.schema import MeasureSettings, Point

TASK = Task(
    point=Point(model="nowhere/model"), device="cpu", settings=MeasureSettings(timeout_s=0.3), repeat=2
)


def script(folder: Path, text: str) -> Interpreter:
    file = folder / "python"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return Interpreter(path=str(file), python="3", code_id="0", packages={})


def test_the_running_interpreter_is_described():
    import typer

    found = inspect(sys.executable)
    assert found.python == sys.version.split()[0]
    assert found.packages["typer"] == typer.__version__
    assert len(found.code_id) == 12


def test_a_process_that_hangs_is_ended_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(interpreter, "START_GRACE_S", 0.0)
    mark = tmp_path / "mark"
    hanging = script(tmp_path, f"(sleep 1; touch {mark}) & wait")
    record = measure_in(hanging, TASK, "run-a")
    assert (record.outcome, record.run_id, record.detail["repeat"]) == ("timeout", "run-a", 2)
    time.sleep(1.2)
    assert not mark.exists()


def test_a_process_that_gives_no_result_crashed_with_its_last_line(tmp_path: Path):
    record = measure_in(script(tmp_path, "echo some >&2; echo 'no such command' >&2; exit 7"), TASK, "run-a")
    assert record.outcome == "crashed"
    assert record.detail["error"] == "the process ended with exit code 7 and gave no result: no such command"
    assert record.detail["stderr_tail"] == "some\nno such command\n"


def test_a_process_that_a_signal_ends_crashed(tmp_path: Path):
    record = measure_in(script(tmp_path, "kill -SEGV $$"), TASK, "run-a")
    assert record.outcome == "crashed"
    assert "exit code -11" in record.detail["error"]


def test_a_result_that_is_no_record_counts_as_none(tmp_path: Path):
    # Called as: python -c CODE FOLDERS qbench run-point REQUEST RESULT
    record = measure_in(script(tmp_path, 'echo "{}" > "$7"'), TASK, "run-a")
    assert record.outcome == "crashed"


def test_no_gpu_is_shown_where_none_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    path = script(tmp_path, 'echo "<$CUDA_VISIBLE_DEVICES>"').path
    assert run_qbench(path, [], 10, gpu=False).stdout == "<>\n"
    assert run_qbench(path, [], 10).stdout == "<3>\n"


def test_a_file_that_is_no_program_is_refused(tmp_path: Path):
    (tmp_path / "python").write_text("text")
    with pytest.raises(QbenchError, match="cannot be run"):
        inspect(str(tmp_path / "python"))


def test_a_program_of_another_kind_cannot_be_started(tmp_path: Path):
    file = tmp_path / "python"
    file.write_bytes(b"\x7fELF not really")
    file.chmod(0o755)
    with pytest.raises(MeasureError, match="cannot be started"):
        run_qbench(str(file), [], 10)


@pytest.mark.parametrize("layout", [".", "src"])
def test_a_checkout_comes_before_what_is_installed(tmp_path: Path, layout: str):
    package = tmp_path / layout / "qbench" / "records"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "software.py").write_text("def code_id():\n    return 'of this checkout'\n")
    assert inspect(sys.executable, CodeFolder(tmp_path)).code_id == "of this checkout"
    assert inspect(sys.executable).code_id != "of this checkout"


def test_what_was_on_the_path_stays_behind_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "checkout").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "mine"))
    ended = _run(code_command(sys.executable, "print(*sys.path, sep='\\n')", [tmp_path / "checkout"]), 10)
    path = ended.stdout.splitlines()
    standard = path.index(sysconfig.get_path("stdlib"))
    assert standard < path.index(str(tmp_path / "checkout")) < path.index(str(tmp_path / "mine"))


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder whose modules leave a mark when they are imported; return the mark."""
    mark, folder = tmp_path / "mark", tmp_path / "hostile"
    folder.mkdir()
    for name in ("json", "statistics", "selectors", "signal", "runpy", "sysconfig", "qbench"):
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write({name!r})\n")
    monkeypatch.chdir(folder)
    return mark


def test_nothing_is_imported_from_the_working_folder(hostile: Path):
    assert inspect(sys.executable).packages
    assert run_qbench(sys.executable, ["--version"], 60).stdout.startswith("qbench ")
    with Sampler("qbench.measure.monitor:nvml_monitor", 0.01) as sampler:
        assert sampler.pid is not None
    assert not hostile.exists()


def test_no_library_of_python_is_taken_from_a_checkout(hostile: Path):
    Path("qbench.py").unlink()
    assert inspect(sys.executable, CodeFolder(Path.cwd())).packages
    assert not hostile.exists()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="needs PYTHONSAFEPATH, which Python has from 3.11 on")
@pytest.mark.parametrize(
    "work",
    [
        "from qbench.measure.executors.local import LocalExecutor as Local; "
        "from qbench.measure.task import Measurement; from functools import partial; "
        "print(Local(preload=()).run(partial(Measurement, outcome='ok'), 60, 'cpu').outcome)",
        "from qbench.measure import pool; pool.PRELOAD = (); "
        "print(*(value for _, value in pool.in_processes(str, ['ok'], 1)))",
    ],
    ids=["executor", "pool"],
)
def test_a_fork_server_imports_nothing_from_the_working_folder(hostile: Path, work: str):
    ended = _run(code_command(sys.executable, work), 120)
    assert (ended.stdout, hostile.exists()) == ("ok\n", False), ended.stderr
