"""A process that plans for the page: it can be ended amid a plan, which a thread cannot."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

from qbench.errors import QbenchError, first_line
from qbench.measure.executors.local import ensure_server
from qbench.quiet import quiet_libraries
from qbench.records.plan_cache import PlanCache
from qbench.records.record import Record
from qbench.runs.plans import PlanFor, plans
from qbench.scenario.schema import Point

MOST_PLAN_S = 30.0
"""What one plan may take of a processor; a model of the catalog takes a second or two."""

MOST_WALL_S = 120.0
"""What it may take where the machine is busy, or has no such clock."""

PATIENCE_S = 2.0
"""How long a plan that nobody waits for any more goes on: a new process costs more than most plans."""

POLL_S = 0.05
END_S = 10.0
TOO_LONG = "no plan within {:g} s; change a setting, or plan it in a terminal (`qbench plan`)"

Question = tuple[Point, PlanFor]


class Superseded(Exception):
    """Nobody waits for this any more: the same reader asked something newer, or the page ends."""


class PlanProcess:
    """Plans one question at a time in a process that is started with the first, and again where it ended."""

    def __init__(self, cache: PlanCache | None, most_s: float = MOST_PLAN_S) -> None:
        self._cache = cache
        self._most_s = most_s
        self._process: Any = None
        self._connection: Connection | None = None

    def plan(self, question: Question, wanted: Callable[[], bool]) -> Record:
        """Return the plan of a question; one that cannot be made has outcome error.

        Raises Superseded once it is not `wanted`, QbenchError where it takes too long or ends its process.
        """
        try:
            connection = self._started()
            self._wait(connection, wanted)
            connection.recv()  # That the libraries are there.
            connection.send((question, self._most_s))
            self._wait(connection, wanted, PATIENCE_S)
            answer = connection.recv()
        except (EOFError, OSError) as error:
            raise QbenchError(self._ending()) from error
        if isinstance(answer, Record):
            return answer
        raise QbenchError(f"planning failed unexpectedly: {answer}; change a setting")

    def _ending(self) -> str:
        """Return why the process has ended, and forget it."""
        process = self._process
        process.join(END_S)
        exit_code = process.exitcode
        self.close()
        if exit_code == -getattr(signal, "SIGPROF", 0):
            return TOO_LONG.format(self._most_s)
        return "planning ended its process, perhaps for want of memory; change a setting"

    def close(self) -> None:
        """End the process, whatever it is at."""
        process, connection, self._process, self._connection = self._process, self._connection, None, None
        if connection is not None:
            connection.close()
        if process is not None:
            process.kill()

    def _started(self) -> Connection:
        if self._connection is None:
            context = _context()
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=serve_plans, args=(theirs, self._cache), daemon=True)
            self._process.start()
            theirs.close()
        return self._connection

    def _wait(self, connection: Connection, wanted: Callable[[], bool], patience_s: float = 0.0) -> None:
        """Return when there is an answer. Raises Superseded or QbenchError; the process has ended then."""
        start = time.monotonic()
        while not connection.poll(POLL_S):
            taken = time.monotonic() - start
            if taken > patience_s and not wanted():
                self.close()
                raise Superseded
            if taken > MOST_WALL_S:
                self.close()
                raise QbenchError(TOO_LONG.format(MOST_WALL_S))


def prepare() -> None:
    """Start what planning processes are forked from; call it in the main thread, whose Ctrl-C it ignores."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        _context()
        ensure_server()


def _context() -> Any:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["qbench.web.plan_preload"])
    return context


def serve_plans(connection: Connection, cache: PlanCache | None) -> None:
    """Serve as the target of the process: answer questions until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # It is the page's to hear.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    quiet_libraries()
    import qbench.web.plan_preload  # noqa: F401  Where no fork server has it.

    with suppress(EOFError, OSError):
        while True:
            connection.send("ready")
            question, most_s = connection.recv()
            with _at_most(most_s):
                answer = _answer(question, cache)
            connection.send(answer)


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """End this process by SIGPROF once it has used so much processor time, where the system can do that."""
    timed = hasattr(signal, "setitimer")
    if timed:
        signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_PROF, 0)


def _answer(question: Question, cache: PlanCache | None) -> Record | str:
    point, settings = question
    try:
        (record,) = plans([point], settings, cache)
    except Exception as error:  # The process must outlive a model that breaks a library.
        logging.getLogger(__name__).exception("a plan failed")
        return first_line(error)
    return record
