"""What a worker may be given to run: work that goes well, and each way in which it can go wrong."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from qbench.catalog.gpus import find_gpu
from qbench.measure.task import Measurement, Task
from qbench.measure.worker import run_task
from qbench.nullgpu import launcher
from qbench.nullgpu.environment import card_environment

ROOM_BYTES = 256 << 20


def fine() -> Measurement:
    return Measurement(outcome="ok", metrics={"total_params": 7})


def tells_its_surroundings() -> Measurement:
    seen = {
        "pid": os.getpid(),
        "group": os.getpgrp(),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "torch_is_loaded": "torch" in sys.modules,
        "ray_is_loaded": "ray" in sys.modules,
    }
    return Measurement(outcome="ok", detail=seen)


def raises() -> Measurement:
    raise ValueError("the tensor is crooked\nand wet")


def hangs() -> Measurement:
    print("about to hang", file=sys.stderr)
    time.sleep(600)
    return fine()


def hangs_with_the_gil() -> Measurement:
    ctypes.PyDLL(None).sleep(600)
    return fine()


def segfaults() -> Measurement:
    print("about to read address 0")
    ctypes.string_at(0)
    return fine()


def is_killed() -> Measurement:
    os.kill(os.getpid(), signal.SIGKILL)
    return fine()


def exits() -> Measurement:
    raise SystemExit(3)


def exits_as_bitsandbytes_does() -> Measurement:
    """Its library prints what CUDA said and calls exit(1)."""
    print("Error out of memory at line 390 in file /src/csrc/ops.cu", file=sys.stderr)
    raise SystemExit(1)


def prints_garbage() -> Measurement:
    os.write(1, bytes(range(256)) * 4096)
    os.write(2, b'{"outcome": "error"}\n\xff\xfe')
    return fine()


class Garbage:
    """Stands where a measurement should, and sends what is none."""

    def to_json(self) -> str:
        return '\x00{"outcome": "ok"\udcff'.encode(errors="replace").decode()


class Half:
    """Sends the first half of an answer and then ends as it is told."""

    def __init__(self, then: str) -> None:
        self.then = then

    def to_json(self) -> str:
        frame = sys._getframe()
        while "connection" not in frame.f_locals:
            assert frame.f_back is not None
            frame = frame.f_back
        os.write(frame.f_locals["connection"].fileno(), b'{"outcome": "ok", "metr')
        globals()[self.then]()
        return "never"


def sends_garbage() -> Garbage:
    return Garbage()


def is_killed_while_it_answers() -> Half:
    return Half("is_killed")


def hangs_while_it_answers() -> Half:
    return Half("hangs")


def leaves_a_child(pid_file: str) -> Measurement:
    child = subprocess.Popen(["sleep", "600"])
    Path(pid_file).write_text(str(child.pid))
    return hangs()


def notes_itself(pid_file: str, holding_the_gil: bool) -> Measurement:
    """Write the ids of worker and fork server, whole or not at all, and hang."""
    part = Path(f"{pid_file}.part")
    part.write_text(f"{os.getpid()} {os.getppid()}")
    part.rename(pid_file)
    return hangs_with_the_gil() if holding_the_gil else hangs()


def kills_the_fork_server() -> Measurement:
    os.kill(os.getppid(), signal.SIGKILL)
    return hangs()


def kills_the_ray_worker() -> Measurement:
    """End the process of Ray that waits for the fork server that made this process."""
    parent = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[1]
    os.kill(int(parent), signal.SIGKILL)
    return hangs()


def with_little_room(task: Task) -> Measurement:
    """Measure a task with ROOM_BYTES of address space beyond what the process has already."""
    _limit_address_space()
    return run_task(task)


def fills_a_cgroup(group: str, num_bytes: int) -> Measurement:
    """Join a cgroup and write to more memory than it allows."""
    Path(group, "cgroup.procs").write_text(str(os.getpid()))
    return Measurement(outcome="ok", metrics={"total_params": len(b"x" * num_bytes)})


def is_frozen(group: str) -> Measurement:
    """Freeze itself, as one that waits within a driver: it hears no signal."""
    Path(group, "cgroup.procs").write_text(str(os.getpid()))
    Path(group, "freezer.state").write_text("FROZEN")
    return hangs()


def allocates_in_python() -> Measurement:
    _limit_address_space()
    bytearray(2 * ROOM_BYTES)
    return fine()


def _limit_address_space() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def calls_what_a_null_gpu_lacks() -> Measurement:
    os.environ.update(card_environment(find_gpu("RTX 3070")))
    ctypes.CDLL(None).cusparseSpMM()
    return fine()


def tells_of_the_shim() -> Measurement:
    return Measurement(outcome="ok", detail={"caveats": [str(launcher.is_loaded())]})
