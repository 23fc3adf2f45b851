"""However a command ends, none of its processes is left."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from qbench.dryrun.process import run

# A child in a session of its own, as torchrun starts its workers, which writes its number and sleeps.
CHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
{end}
"""


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_program_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    code = CHILD.format(end="time.sleep(600)")
    begun = time.monotonic()
    ended = run([sys.executable, "-c", code], os.environ, tmp_path / "log", 5)
    assert ended.exit_code is None
    assert time.monotonic() - begun < 120
    assert not is_running(int(ended.tail.split()[0]))


def test_children_do_not_outlive_a_program_that_ends(tmp_path: Path) -> None:
    ended = run([sys.executable, "-c", CHILD.format(end="sys.exit(5)")], os.environ, tmp_path / "log", 120)
    assert ended.exit_code == 5
    assert not is_running(int(ended.tail.split()[0]))


def test_a_signal_is_seen(tmp_path: Path) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    assert run([sys.executable, "-c", code], os.environ, tmp_path / "log", 120).exit_code == -11
