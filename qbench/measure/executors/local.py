"""Run each task in a fresh process on this machine, one after the other.

A fork server holds the heavy libraries, so that a new process costs milliseconds instead of seconds.
The parent sleeps until the worker answers, ends or runs out of time; it burns no core beside it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from qbench.errors import MeasureError
from qbench.measure.task import Measurement, Task, measurement_from_json
from qbench.measure.worker import worker_main

STDERR_TAIL_BYTES = 2000
END_GRACE_S = 10.0


class LocalExecutor:
    """Runs tasks on this machine; use it in `with`, so that the fork server ends with it."""

    def __init__(self) -> None:
        self._context: Any = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["qbench.measure.preload"])

    def run(self, task: Task) -> Measurement:
        """Return the measurement of one task in a fresh process; a dead or hung worker is an outcome too."""
        with tempfile.TemporaryDirectory(prefix="qbench-") as folder:
            log = Path(folder) / "worker.log"
            with self._worker(task, log) as (process, receiver):
                answer = _await_answer(process, receiver, task.settings.timeout_s)
                if isinstance(answer, bytes):
                    process.join(END_GRACE_S)
                    return _parsed(answer, log)
                return _ended(process, answer, log, task)

    @contextlib.contextmanager
    def _worker(self, task: Task, log: Path) -> Iterator[tuple[BaseProcess, Connection]]:
        # Both directions: the worker notices by its end that the runner has died.
        receiver, sender = self._context.Pipe(duplex=True)
        process = self._context.Process(target=worker_main, args=(task.to_json(), sender, str(log)))
        process.start()
        sender.close()
        try:
            yield process, receiver
        finally:
            receiver.close()
            if process.is_alive():
                process.kill()
            process.join()


def _await_answer(process: BaseProcess, receiver: Connection, timeout_s: float) -> bytes | str:
    """Return the worker's bytes, or how it failed to give any: timeout or ended."""
    deadline = time.monotonic() + timeout_s
    ready = wait([receiver, process.sentinel], timeout=max(0.0, deadline - time.monotonic()))
    if not ready:
        return "timeout"
    with contextlib.suppress(EOFError, OSError):
        if receiver.poll():
            return receiver.recv_bytes()
    return "ended"


def _parsed(answer: bytes, log: Path) -> Measurement:
    try:
        return measurement_from_json(answer)
    except MeasureError as error:
        return Measurement(outcome="crashed", detail={"error": str(error), "stderr_tail": _tail(log)})


def _ended(process: BaseProcess, how: str, log: Path, task: Task) -> Measurement:
    if how == "timeout":
        process.kill()
        process.join()
        error = f"no result within {task.settings.timeout_s:g} s; raise measure.timeout_s"
        return Measurement(outcome="timeout", detail=_failure(error, log, task))
    process.join(END_GRACE_S)
    return Measurement(outcome="crashed", detail=_failure(_ending(process.exitcode), log, task))


def _failure(error: str, log: Path, task: Task) -> dict[str, Any]:
    return {"repeat": task.repeat, "error": error, "stderr_tail": _tail(log)}


def _ending(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"the worker ended with exit code {exit_code} and gave no result"
    name = signal.Signals(-exit_code).name
    hint = "; the kernel does this when memory runs out" if name == "SIGKILL" else ""
    return f"the worker was ended by {name}{hint}"


def _tail(log: Path) -> str:
    try:
        return log.read_bytes()[-STDERR_TAIL_BYTES:].decode(errors="replace")
    except OSError:
        return ""
