"""Run each piece of work in a fresh process on this machine, one after the other.

A fork server holds the heavy libraries, so that a new process costs milliseconds instead of seconds.
The parent sleeps until the worker answers, ends or runs out of time; it burns no core beside it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.process
import os
import pickle
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import IO, Any, Literal

from qbench.errors import MeasureError
from qbench.measure.failures import ended_by, kernel_oom_kills
from qbench.measure.start import safe_path
from qbench.measure.task import Attempt, Measurement, measurement_from_json
from qbench.measure.worker import worker_main
from qbench.nullgpu.launcher import preload_environment
from qbench.scenario.schema import RunDevice

PRELOAD = ("qbench.measure.preload",)
STDERR_TAIL_BYTES = 2000
END_GRACE_S = 10.0
SERVER_END_S = 0.5
CHUNK_BYTES = 1 << 16

_served: tuple[Sequence[str], str | None] | None = None
"""Modules and LD_PRELOAD of the fork server that runs; None where none was started."""


class LocalExecutor:
    """Runs work on this machine. The fork server is one for the whole program and ends with it.

    `preload` names the modules that the fork server imports.
    Raises MeasureError where the system has no such server (Windows).
    """

    def __init__(
        self, preload: Sequence[str] = PRELOAD, start_method: Literal["forkserver", "spawn"] = "forkserver"
    ) -> None:
        if "forkserver" not in multiprocessing.get_all_start_methods():
            raise MeasureError("measuring needs Linux or macOS; `qbench plan` works everywhere")
        self._context: Any = multiprocessing.get_context(start_method)
        self._preload = tuple(preload)

    def run(self, work: Attempt, timeout_s: float, device: RunDevice) -> Measurement:
        """Return the measurement of work done in a fresh process; a dead or hung worker is an outcome too.

        For `device` cpu the worker sees no GPU, for null it has the shim. Raises MeasureError when no
        temporary file can be made, QbenchError where there can be no null GPU.
        """
        with _log_file() as log:
            kills = kernel_oom_kills()
            try:
                ended = self._started_and_ended((pickle.dumps(work), device, log.name), timeout_s)
            except (OSError, EOFError) as error:
                return Measurement(
                    outcome="error", detail={"error": f"the worker could not be started: {error!r}"}
                )
            if ended.answer.endswith(b"\n"):
                return _parsed(ended.answer, log)
            if ended.exit_code is None:
                return _timeout(timeout_s, log, ended.is_left)
            return ended_by(ended.exit_code, kernel_oom_kills() - kills, _tail(log))

    def _started_and_ended(self, arguments: tuple[bytes, RunDevice, str], timeout_s: float) -> _Ended:
        try:
            return self._ended(arguments, timeout_s)
        except (OSError, EOFError):
            # A fork server that was killed a moment ago looks alive until the system has cleared it away.
            time.sleep(SERVER_END_S)
            return self._ended(arguments, timeout_s)

    def _ended(self, arguments: tuple[bytes, RunDevice, str], timeout_s: float) -> _Ended:
        """Run a worker to its end. Raises OSError or EOFError when the fork server does not make one."""
        # Both directions: the worker notices by its end that the runner has died.
        receiver, sender = self._context.Pipe(duplex=True)
        with receiver:
            process = self._context.Process(target=worker_main, args=(*arguments, sender))
            with sender, _environ(preload_environment() if arguments[1] == "null" else {}):
                if self._context.get_start_method() == "forkserver":
                    ensure_server(self._preload)
                process.start()
            try:
                ended = _wait_for(process, receiver, timeout_s)
            finally:
                has_ended = _end(process)
            return ended if has_ended else replace(ended, is_left=True)


def ensure_server(preload: Sequence[str]) -> None:
    """Start a fork server that imports these modules, deaf to Ctrl-C, where there is none.

    One that imported others, or was started with other preloaded libraries, ends: its workers would have
    them, too. Ctrl-C is the runner's to hear; it would end the server amid its imports, with a traceback.
    """
    global _served
    wanted = (tuple(preload), os.environ.get("LD_PRELOAD"))
    if wanted != _served:
        forkserver._forkserver._stop()  # type: ignore[attr-defined]
        forkserver.set_forkserver_preload(list(preload))
        _served = wanted
    if threading.current_thread() is not threading.main_thread():  # No other may set a handler.
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with safe_path():
            forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)


@contextlib.contextmanager
def _environ(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process, which a process started within inherits."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@dataclass(frozen=True, slots=True)
class _Ended:
    answer: bytes
    """What the worker sent; a whole answer ends with a newline."""
    exit_code: int | None
    """Negative for a signal; None while the process ran on."""
    is_left: bool = False
    """Whether it cannot be ended."""


def _wait_for(process: BaseProcess, receiver: Connection, timeout_s: float) -> _Ended:
    """Return what the worker sent within the time, once it is whole or the worker has ended."""
    deadline = time.monotonic() + timeout_s
    answer = b""
    while not answer.endswith(b"\n"):
        ready = wait([receiver, process.sentinel], timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            return _Ended(answer, None)
        chunk = os.read(receiver.fileno(), CHUNK_BYTES) if receiver in ready else b""
        if not chunk:
            break
        answer += chunk
    process.join(END_GRACE_S)
    return _Ended(answer, process.exitcode)


def _end(process: BaseProcess) -> bool:
    """Leave neither the worker nor its children behind; return False for one that cannot be ended.

    A process that waits within a driver (state D) receives no signal for an unknown time.
    """
    if process.ident is not None and process.is_alive():
        with contextlib.suppress(ProcessLookupError):  # A worker that has just started has no group yet.
            os.killpg(process.ident, signal.SIGKILL)
        process.kill()
    process.join(END_GRACE_S)
    if process.is_alive():
        # Else multiprocessing would wait for it when this program ends.
        multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]
        return False
    process.close()
    return True


def _log_file() -> IO[bytes]:
    try:
        return tempfile.NamedTemporaryFile(prefix="qbench-", suffix=".log")
    except OSError as error:
        raise MeasureError(f"no temporary file can be made: {error}; make room or set TMPDIR") from error


def _parsed(answer: bytes, log: IO[bytes]) -> Measurement:
    try:
        return measurement_from_json(answer)
    except MeasureError as error:
        return Measurement(outcome="crashed", detail={"error": str(error), "stderr_tail": _tail(log)})


def _timeout(timeout_s: float, log: IO[bytes], is_left: bool) -> Measurement:
    error = f"no result within {timeout_s:g} s; raise measure.timeout_s"
    if is_left:
        error = (
            f"no result within {timeout_s:g} s, and the worker cannot be killed: it is stuck in a driver "
            "call, may still hold device memory, and may disturb later measurements"
        )
    return Measurement(outcome="timeout", detail={"error": error, "stderr_tail": _tail(log)})


def _tail(log: IO[bytes]) -> str:
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - STDERR_TAIL_BYTES))
    return log.read(STDERR_TAIL_BYTES).decode(errors="replace")
