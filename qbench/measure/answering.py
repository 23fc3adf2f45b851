"""A process that answers one question after another, and can be ended during one, which a thread cannot."""

from __future__ import annotations

import importlib
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

MOST_S = 30.0
"""What one answer may take of a processor."""

MOST_WALL_S = 120.0
"""What it may take where the machine is busy, or has no such clock."""

PATIENCE_S = 2.0
"""How long work continues after the reader has gone: a new process costs more than most answers."""

POLL_S = 0.05
END_S = 10.0

Handler = Callable[[Any], Any]
"""Returns the answer to a question; both it and they travel by pickle."""


class GivenUp(Exception):
    """The answer is no longer needed."""


class TooLong(Exception):
    """The answer takes longer than it may; the text says how long that is."""


class ProcessEnded(Exception):
    """The process ended during a question."""


class AnsweringProcess:
    """Answers questions in a process that is started with the first, and again where it ended.

    It sees no GPU. `preload` is the module with the libraries, which the fork server imports.
    """

    def __init__(self, answer: Handler, preload: str, most_s: float = MOST_S) -> None:
        self._answer = answer
        self._preload = preload
        self._most_s = most_s
        self._process: Any = None
        self._connection: Connection | None = None

    def prepare(self) -> None:
        """Start what the process is forked from; call it in the main thread, whose Ctrl-C it ignores."""
        if _context().get_start_method() == "forkserver":
            ensure_server([self._preload])

    def ask(self, question: Any, wanted: Callable[[], bool]) -> Any:
        """Return the answer. Raises GivenUp once it is not `wanted`, TooLong, ProcessEnded, or QbenchError.

        The last says that the answer's function failed, in the words of its exception.
        """
        try:
            connection = self._started()
            self._wait(connection, wanted)
            connection.recv()  # That the libraries are there.
            connection.send((question, self._most_s))
            self._wait(connection, wanted, PATIENCE_S)
            problem, answer = connection.recv()
        except (EOFError, OSError) as error:
            raise self._ending() from error
        if problem is not None:
            raise QbenchError(problem)
        return answer

    def close(self) -> None:
        """End the process, whatever it is at."""
        process, connection, self._process, self._connection = self._process, self._connection, None, None
        if connection is not None:
            connection.close()
        if process is not None:
            process.kill()

    def _started(self) -> Connection:
        if self._connection is None:
            self.prepare()
            context = _context()
            self._connection, theirs = context.Pipe()
            arguments = (theirs, self._answer, self._preload)
            self._process = context.Process(target=serve_answers, args=arguments, daemon=True)
            self._process.start()
            theirs.close()
        return self._connection

    def _ending(self) -> Exception:
        """Return why the process has ended, and forget it."""
        process = self._process
        process.join(END_S)
        exit_code = process.exitcode
        self.close()
        if exit_code == -getattr(signal, "SIGPROF", 0):
            return TooLong(f"{self._most_s:g} s")
        return ProcessEnded()

    def _wait(self, connection: Connection, wanted: Callable[[], bool], patience_s: float = 0.0) -> None:
        """Return when there is an answer. Raises GivenUp or TooLong; the process has ended then."""
        start = time.monotonic()
        while not connection.poll(POLL_S):
            taken = time.monotonic() - start
            if taken > patience_s and not wanted():
                self.close()
                raise GivenUp
            if taken > MOST_WALL_S:
                self.close()
                raise TooLong(f"{MOST_WALL_S:g} s")


def _context() -> Any:
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")


def serve_answers(connection: Connection, answer: Handler, preload: str) -> None:
    """Serve as the target of the process: answer questions until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # It is its starter's to hear.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    quiet_libraries()
    importlib.import_module(preload)  # Where no fork server has it.
    with suppress(EOFError, OSError):
        while True:
            connection.send("ready")
            question, most_s = connection.recv()
            with _at_most(most_s):
                answered = _answered(answer, question)
            connection.send(answered)


def _answered(answer: Handler, question: Any) -> tuple[str | None, Any]:
    try:
        return None, answer(question)
    except Exception as error:  # The process must outlive a question that breaks a library.
        logging.getLogger(__name__).exception("a question failed")
        return first_line(error), None


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
