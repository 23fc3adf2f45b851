"""The worker: measure one point once, in a process of its own, and turn what happens into an outcome."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from typing import Any

from qbench.errors import QbenchError
from qbench.measure.task import Measurement, Task, task_from_json
from qbench.quiet import quiet_libraries

_ALLOCATION_FAILURES = ("can't allocate memory", "out of memory", "CUDA error: out of memory")


def run_task(task: Task) -> Measurement:
    """Return the measurement of a task, whatever happens in it short of the process's end."""
    from qbench.measure.environment import environment

    done = _measured(task)
    detail = {"repeat": task.repeat, **done.detail}
    return Measurement(
        outcome=done.outcome, metrics=done.metrics, detail=detail, environment=environment(task.device)
    )


def _measured(task: Task) -> Measurement:
    try:
        if task.device == "cuda":
            from qbench.measure.cuda import measure_cuda

            return measure_cuda(task)
        from qbench.measure.cpu import measure_cpu

        return measure_cpu(task)
    except QbenchError as error:
        return Measurement(outcome="error", detail={"error": str(error)})
    except MemoryError as error:
        return _out_of_memory(error)
    except Exception as error:
        # The boundary of a point: whatever a library raises is this point's outcome, with its traceback kept.
        if any(words in str(error) for words in _ALLOCATION_FAILURES):
            return _out_of_memory(error)
        return Measurement(
            outcome="error",
            detail={"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()},
        )


def _out_of_memory(error: BaseException) -> Measurement:
    text = str(error).strip().splitlines()
    return Measurement(outcome="oom", detail={"error": text[0] if text else type(error).__name__})


def worker_main(task_text: str, connection: Any, log_path: str) -> None:
    """Serve as the target of a worker process: send one measurement as JSON bytes, print only to the log."""
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # The fork server's standard streams may be block-buffered; a crash must not lose their last lines.
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    quiet_libraries()
    threading.Thread(target=_end_with_runner, args=(connection,), daemon=True).start()
    measurement = run_task(task_from_json(task_text))
    connection.send_bytes(measurement.to_json().encode())


def _end_with_runner(connection: Any) -> None:
    """End this process when the runner is gone: nobody would read the result, and it would disturb the next."""
    try:
        connection.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)
