"""Runs a command to its end, or ends it, and leaves none of its processes behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qbench.errors import QbenchError

MARK = "QBENCH_DRYRUN_ID"
"""A variable that all processes of a run inherit, by which they are found."""
TAIL_BYTES = 1 << 16
KILL_ROUNDS = 50
PAUSE_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended."""

    exit_code: int | None
    """Negative for a signal; None where its time was over."""
    tail: str
    """The last that it wrote to stdout and stderr."""


def run(command: Sequence[str], variables: Mapping[str, str], log: Path, timeout_s: float | None) -> Ended:
    """Run a command in the working folder, its output into a file; return how it ended.

    However this ends, by an interrupt included, no process of the command is left.
    Raises QbenchError where it cannot be started.
    """
    mark = uuid.uuid4().hex
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**variables, MARK: mark},
            )
        except OSError as error:
            raise QbenchError(f"{command[0]} cannot be started: {error.strerror}") from error
        try:
            exit_code: int | None = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            exit_code = None
        finally:
            _end_all(process, mark)
    return Ended(exit_code=exit_code, tail=_tail(log))


def _end_all(process: subprocess.Popen[bytes], mark: str) -> None:
    """Kill the command and all that it started, in sessions of their own too, until none is left."""
    for _ in range(KILL_ROUNDS):
        left = list(_marked(mark))
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        process.poll()
        if not left:
            return
        time.sleep(PAUSE_S)


def _marked(mark: str) -> Iterator[int]:
    """Yield the processes of this machine that have the mark in their environment and have not ended."""
    wanted = f"{MARK}={mark}".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    yield int(folder.name)


def _tail(log: Path) -> str:
    with log.open("rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - TAIL_BYTES))
        return stream.read().decode(errors="replace")
