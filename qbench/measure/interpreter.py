"""Another Python interpreter with its own libraries: what is installed there, and qbench run by it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qbench.errors import MeasureError, QbenchError, RecordError
from qbench.measure.environment import environment
from qbench.measure.request import request_of
from qbench.measure.start import code_command, module_command
from qbench.measure.task import Task
from qbench.records.record import Outcome, Record, record_from_dict
from qbench.scenario.schema import Device

INSPECT_TIMEOUT_S = 120.0
PLAN_TIMEOUT_S = 3600.0
LAST_LINE_CHARS = 300
START_GRACE_S = 120.0
"""Time for imports, beyond that of a measurement."""
STDERR_TAIL_CHARS = 2000
END_GRACE_S = 10.0

_INSPECTION = """
import json
from importlib.metadata import distributions
packages = {}
for found in distributions():
    if found.metadata["Name"]:
        packages.setdefault(found.metadata["Name"].lower().replace("_", "-"), found.version)
facts = {"python": sys.version.split()[0], "packages": packages, "code_id": None, "problem": None}
facts["fingerprints"] = {}
try:
    from qbench.records.software import code_id
    facts["code_id"] = code_id()
    from qbench.records.installed import fingerprints
    facts["fingerprints"] = fingerprints()
except ImportError as error:
    facts["problem"] = str(error)
print(json.dumps(facts))
"""
"""Of a package that is found twice the first counts, as for an import."""


@dataclass(frozen=True, slots=True)
class CodeFolder:
    """A checkout whose packages come before the installed ones, be they on its top or in src."""

    path: Path

    @property
    def folders(self) -> list[Path]:
        """Where a Python looks before all that is installed."""
        return [each for each in (self.path / "src", self.path) if each.is_dir()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """A Python interpreter that can import qbench."""

    path: str
    """Executable, absolute; not resolved, since a virtual environment is known by its link."""
    python: str
    """Version of the language."""
    code_id: str
    """Fingerprint of the qbench that is installed there."""
    packages: dict[str, str]
    """Version by name of every installed distribution."""
    fingerprints: dict[str, str | None] = field(default_factory=dict)
    """Digest of what of a library is not as its version has it (`records.installed`); None where all is."""
    code: CodeFolder | None = None
    """Where it looks for modules before all else; None: only where it would by itself."""

    @property
    def installed(self) -> dict[str, str]:
        """Version by name, with the digest of what differs from its release: '0.21.2 changed (1f0a...)'."""
        changed = {name: digest for name, digest in self.fingerprints.items() if digest}
        return self.packages | {
            name: f"{self.packages.get(name, 'unknown')} changed ({digest})"
            for name, digest in changed.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command of another interpreter ended."""

    exit_code: int | None
    """Negative for a signal; None when it was ended because its time was over."""
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        """The last line of stderr, which is where an error is named."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        return lines[-1][:LAST_LINE_CHARS] if lines else "no output"


def inspect(given: str, code: CodeFolder | None = None) -> Interpreter:
    """Return the facts of an interpreter, by path or by a name on PATH, with the modules of a checkout.

    Raises QbenchError, which says what to do, when there is none or it cannot import qbench.
    """
    path = shutil.which(given)
    if path is None:
        raise QbenchError(f"{given} cannot be run; give the path of a Python, for example .venv/bin/python")
    path = os.path.abspath(path)
    ended = _run(code_command(path, _INSPECTION, code.folders if code else ()), INSPECT_TIMEOUT_S, code=code)
    try:
        facts = json.loads(ended.stdout)
        problem, code_id = facts["problem"], facts["code_id"]
    except (ValueError, TypeError, KeyError):
        raise QbenchError(f"{given} is not a working Python ({ended.last_line})") from None
    if code_id is None:
        raise QbenchError(
            f"{given} cannot import qbench ({problem}); install it there: {given} -m pip install qbench"
        )
    return Interpreter(
        path=path,
        python=facts["python"],
        code_id=code_id,
        packages=facts["packages"],
        fingerprints=facts["fingerprints"],
        code=code,
    )


def run_qbench(
    python: str,
    arguments: Sequence[str],
    timeout_s: float,
    *,
    gpu: bool = True,
    code: CodeFolder | None = None,
) -> Ended:
    """Run one command of the qbench that a Python has, in a fresh process of it; return how it ended.

    Without `gpu` the process sees none. Raises MeasureError when the process cannot be started.
    """
    hidden = {} if gpu else {"CUDA_VISIBLE_DEVICES": ""}
    command = module_command(python, "qbench", arguments, code.folders if code else ())
    return _run(command, timeout_s, hidden, code)


def plan_in(
    python: str, scenario_file: Path, device: Device, timeout_s: float = PLAN_TIMEOUT_S
) -> list[Record]:
    """Return the plans of a scenario that another Python makes. Raises MeasureError where it makes none."""
    arguments = ["plan", str(scenario_file.resolve()), "--device", device, "--json"]
    ended = run_qbench(python, arguments, timeout_s, gpu=False)
    try:
        values = json.loads(ended.stdout)["records"]
        return [record_from_dict(record, f"plan of {python}") for record in values]
    except (ValueError, KeyError, TypeError, RecordError) as error:
        why = ended.last_line if ended.exit_code != 0 else str(error)
        raise MeasureError(f"{python} made no plan: {why}") from error


def measure_in(interpreter: Interpreter, task: Task, run_id: str) -> Record:
    """Return the record of one task done by another interpreter, in a fresh process: `qbench run-point`.

    A process that hangs or dies is an outcome of its point. Raises MeasureError when no process can be
    started or no temporary file be made.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="qbench-") as folder:
            return _measured(interpreter, task, run_id, Path(folder))
    except OSError as error:
        raise MeasureError(f"no temporary file can be made: {error}; make room or set TMPDIR") from error


def _measured(interpreter: Interpreter, task: Task, run_id: str, folder: Path) -> Record:
    request, result = folder / "point.json", folder / "result.json"
    request.write_text(request_of(task, run_id).to_json(), encoding="utf-8")
    timeout_s = task.settings.timeout_s + START_GRACE_S
    arguments = ["run-point", str(request), str(result)]
    gpu = task.device != "cpu"
    ended = run_qbench(interpreter.path, arguments, timeout_s, gpu=gpu, code=interpreter.code)
    try:
        return record_from_dict(json.loads(result.read_bytes()), str(result))
    except (OSError, ValueError, RecordError):
        return _without_result(task, run_id, ended, timeout_s)


def _without_result(task: Task, run_id: str, ended: Ended, timeout_s: float) -> Record:
    """Return the record of a process that left none; it says nothing of its machine, so this one does."""
    outcome: Outcome = "timeout" if ended.exit_code is None else "crashed"
    if outcome == "timeout":
        error = f"no result within {timeout_s:g} s; raise measure.timeout_s"
    else:
        error = f"the process ended with exit code {ended.exit_code} and gave no result: {ended.last_line}"
    return Record(
        run_id=run_id,
        point=task.point,
        kind="measurement",
        outcome=outcome,
        metrics={},
        detail={"repeat": task.repeat, "error": error, "stderr_tail": ended.stderr[-STDERR_TAIL_CHARS:]},
        environment=environment(task.device, task.gpu),
    )


def _run(
    command: Sequence[str],
    timeout_s: float,
    variables: Mapping[str, str] | None = None,
    code: CodeFolder | None = None,
) -> Ended:
    # Files, not pipes: a child that outlives the command would keep a pipe open.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                env={**os.environ, **(variables or {})},
                cwd=code.path if code else None,
            )
        except OSError as error:
            raise MeasureError(f"{command[0]} cannot be started: {error.strerror}") from error
        try:
            exit_code: int | None = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            exit_code = None
        finally:
            _end(process)
        return Ended(exit_code=exit_code, stdout=_content(out), stderr=_content(err))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave neither the process nor its children behind, also when this one was interrupted."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # It may wait within a driver, deaf to signals.
        process.wait(END_GRACE_S)


def _content(stream: Any) -> str:
    stream.seek(0)
    return str(stream.read().decode(errors="replace"))
