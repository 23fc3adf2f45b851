"""The worker: one piece of work in a process of its own, and what becomes of it sent as one line of JSON."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import threading
from dataclasses import replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection

from qbench.measure.environment import environment
from qbench.measure.failures import failure
from qbench.measure.task import Measurement, Task
from qbench.quiet import quiet_libraries
from qbench.scenario.schema import RunDevice

_PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""


class PhaseNote:
    """Knows the phase that a task is in; call it with the name of each as it begins."""

    def __init__(self) -> None:
        self.current = "load"

    def __call__(self, phase: str) -> None:
        """Take note of a phase that begins."""
        self.current = phase


def run_task(task: Task) -> Measurement:
    """Return the measurement of a task, whatever happens in it short of the process's end."""
    phase = PhaseNote()
    try:
        done = _measured(task, phase)
    except Exception as error:
        # The boundary of a point: whatever a library raises is this point's outcome and nobody else's.
        done = failure(error, phase.current)
    return replace(done, environment=environment(task.device, task.gpu))


def _measured(task: Task, phase: PhaseNote) -> Measurement:
    if task.point.num_gpus > 1:
        from qbench.measure.ranks import measure_ranks

        return measure_ranks(task)
    if task.device == "null":
        from qbench.measure.null import measure_null

        return measure_null(task, phase)
    if task.device == "cuda":
        from qbench.measure.cuda import measure_cuda

        return measure_cuda(task, phase)
    from qbench.measure.cpu import measure_cpu

    return measure_cpu(task, phase)


def worker_main(pickled_work: bytes, device: RunDevice, log_path: str, connection: Connection) -> None:
    """Serve as the target of a worker process: send one line of JSON, print only to the log."""
    _live_no_longer_than_the_runner(connection)
    _print_to(log_path)
    quiet_libraries()
    _choose_devices(device)
    line = _answer(pickled_work).encode() + b"\n"
    with open(connection.fileno(), "wb", closefd=False) as stream:
        stream.write(line)


def _answer(pickled_work: bytes) -> str:
    try:
        answer: Measurement = pickle.loads(pickled_work)()
        return answer.to_json()
    except Exception as error:
        return failure(error).to_json()


def _live_no_longer_than_the_runner(connection: Connection) -> None:
    """End with the runner: the result would not be read, and the next measurement would be disturbed.

    A process group of its own keeps the terminal's Ctrl-C to the runner, and lets children end with it.
    """
    os.setsid()
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    if sys.platform == "linux":
        # The kernel's signal reaches a worker that holds the GIL, too: it comes when the fork server ends,
        # which ends with the last process that could ask it for workers, and this one must not count.
        alive = getattr(forkserver._forkserver, "_forkserver_alive_fd", None)
        if alive is not None:
            os.close(alive)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_with(connection: Connection) -> None:
    # The runner sends nothing: whatever ends this wait, the runner is gone or has given this worker up.
    os.read(connection.fileno(), 1)
    os.killpg(0, signal.SIGKILL)


def _print_to(log_path: str) -> None:
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # The fork server's standard streams may be block-buffered; a crash must not lose their last lines.
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)


def _choose_devices(device: RunDevice) -> None:
    """Show the one GPU that is measured to CUDA, or none, before CUDA starts in this process."""
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    if device == "null":  # Its card comes with the task.
        return
    from qbench.measure import nvml

    nvml.pin_device()
