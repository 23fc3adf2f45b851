"""Follows the optimizer's steps of a process: memory at each, and its end after the last that is wanted."""

from __future__ import annotations

import atexit
import functools
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from . import places
from .rows import Rows

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl", "deepspeed")
HISTORY_ENTRIES = 4_000_000
MOST_OOMS = 20
"""Times out of memory that are written down."""


def guarded(hook: Callable[..., None]) -> Callable[..., None]:
    """Return a method that notes its failure instead of raising it: an instrument must not end a program."""

    @functools.wraps(hook)
    def call(self: Watch, *args: Any, **kwargs: Any) -> None:
        try:
            hook(self, *args, **kwargs)
        except Exception:
            self.problems.append(traceback.format_exc())

    return call


class Watch:
    """What is known of one process; `report` writes it to a file of the run."""

    def __init__(self, folder: str, steps: int) -> None:
        self.folder = folder
        self.wanted = steps
        """Updates after which the process ends; 0: it is not followed, only values are kept true."""
        self.steps = 0
        self.step_times: list[float] = []
        self.marks: list[dict[str, Any]] = []
        self.ooms: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self.holders: list[dict[str, Any]] = []
        """Addresses by what they hold, one for each step."""
        self.counts: dict[str, int] = {}
        self._work: list[dict[str, Any]] = []
        self.rows = Rows()
        self._torch: Any = None
        self._values: Any = None
        self._steps_of: dict[int, int] = {}
        self._other_steps = False
        self._last = time.perf_counter()
        self._pid = os.getpid()
        self._ended = "running"
        self._finding = False

    # ---- hooks

    @guarded
    def begin(self, torch: Any) -> None:
        """Follow torch, which has just been imported, where it sees a card."""
        from torch.optim import optimizer

        if torch.version.cuda is None:  # Asking CUDA itself would bar a fork from using it.
            return
        self._torch = torch
        from .values import Values

        self._values = Values()
        self._values.__enter__()
        if not self.wanted:
            return
        places.keep_lines_of_forward(torch)
        optimizer.register_optimizer_step_pre_hook(self._before_step)
        optimizer.register_optimizer_step_post_hook(self._after_step)
        base: Any = optimizer.Optimizer
        made = base.__init__

        @functools.wraps(made)
        def init(this: Any, *args: Any, **kwargs: Any) -> None:
            made(this, *args, **kwargs)
            self._loaded()

        base.__init__ = init
        torch.cuda._lazy_call(self._cuda_begins)
        atexit.register(self._exits)
        leave = os._exit

        def _exit(status: int) -> None:
            self._exits()
            leave(status)

        os._exit = _exit  # type: ignore[assignment]

    @guarded
    def follow_inductor(self, folding: Any) -> None:
        """Keep values true while torch.compile folds constants, which it computes without any mode."""
        run = folding.ConstantFolder.run

        @functools.wraps(run)
        def folded(this: Any, *args: Any, **kwargs: Any) -> Any:
            with self._values:
                return run(this, *args, **kwargs)

        folding.ConstantFolder.run = folded

    @guarded
    def follow_deepspeed(self, engine: Any) -> None:
        """Count the steps of DeepSpeed's engine; its optimizers step once for each part of the weights."""
        step = engine.DeepSpeedEngine._take_model_step

        @functools.wraps(step)
        def taken(this: Any, *args: Any, **kwargs: Any) -> None:
            self._other_steps = True
            self._note_step_begins(this.optimizer)
            step(this, *args, **kwargs)
            self._note_step_ends(this)

        engine.DeepSpeedEngine._take_model_step = taken

    @guarded
    def _cuda_begins(self) -> None:
        memory = self._torch.cuda.memory
        memory._record_memory_history("all", context="alloc", stacks="python", max_entries=HISTORY_ENTRIES)
        self._torch._C._cuda_attach_out_of_memory_observer(self._out_of_memory)

    @guarded
    def _out_of_memory(self, device: int, requested: int, total: int, free: int) -> None:
        if len(self.ooms) >= MOST_OOMS:
            return
        frame = sys._getframe(1)
        node = self._torch._C._current_autograd_node()
        lines = (node.metadata.get("traceback_") or [None]) if node is not None else [None]
        self.ooms.append(
            {
                "phase": self._phase,
                "requested_bytes": requested,
                "total_bytes": total,
                "free_bytes": free,
                "reserved_bytes": self._torch.cuda.memory_reserved(device),
                "device": device,
                "step": self.steps,
                "place": _shown(places.calling(frame)) or lines[0],
                "user": _shown(places.users_line(frame)),
                "in_backward": node is not None,
            }
        )
        self._find_holders()
        self._write({"peak": self._peaks(at_oom=True)})

    @property
    def _phase(self) -> str:
        if not self.marks:
            return "load"
        return "first_step" if self.steps == 0 else "later_steps"

    @guarded
    def _loaded(self) -> None:
        if self.steps == 0 and self._cuda_runs():
            self.marks = [self._mark("load")]
            self._note_work()
            self._last = time.perf_counter()

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if not self._other_steps:
            self._note_step_begins(optimizer)

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if not self._other_steps:
            self._note_step_ends(optimizer)

    @guarded
    def _note_step_begins(self, optimizer: Any) -> None:
        if self._cuda_runs():
            if not self.marks:
                self.marks.append(self._mark("load"))
            self._find_holders(optimizer)
            if self._values.work is not None:
                self._values.work.in_optimizer = True

    def _note_step_ends(self, stepped: Any) -> None:
        self._count_step(stepped)
        if self.steps >= self.wanted:
            self._ended = "steps"
            self._exits()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    @guarded
    def _count_step(self, stepped: Any) -> None:
        if not self._cuda_runs():
            return
        count = self._steps_of[id(stepped)] = self._steps_of.get(id(stepped), 0) + 1
        if self.holders:
            self.holders[-1]["optimizer"] |= _state_addresses(stepped)
        if count > self.steps:
            self.steps = count
            now = time.perf_counter()
            self.step_times.append(now - self._last)
            self._last = now
            self.marks.append(self._mark("first_step" if count == 1 else "later_steps"))
            self._note_work()
            self._write({})

    def _note_work(self) -> None:
        """Note the work of the last update, in which all that is done once is done."""
        from .work import WorkLog

        if self._values.work is not None:
            self._values.work.in_optimizer = False
            self._work = self._values.work.rows()
        self._values.work = WorkLog() if self.steps == self.wanted - 1 else None

    # ---- what is known

    def _cuda_runs(self) -> bool:
        return (
            os.getpid() == self._pid and self._torch is not None and bool(self._torch.cuda.is_initialized())
        )

    def _mark(self, phase: str) -> dict[str, Any]:
        cuda = self._torch.cuda
        devices = {}
        for device in range(cuda.device_count()):
            stats = cuda.memory_stats(device)
            if stats.get("reserved_bytes.all.peak"):
                devices[str(device)] = {
                    "allocated": stats["allocated_bytes.all.current"],
                    "peak_allocated": stats["allocated_bytes.all.peak"],
                    "reserved": stats["reserved_bytes.all.current"],
                    "peak_reserved": stats["reserved_bytes.all.peak"],
                    "retries": stats["num_alloc_retries"],
                    "ooms": stats["num_ooms"],
                }
        return {"phase": phase, "time_us": time.time_ns() // 1000, "devices": devices}

    def _find_holders(self, optimizer: Any = None) -> None:
        from . import holders

        if self.holders and optimizer is not None and self.counts:
            # Parameters stay where they are, but for the first steps of programs that move them.
            found = dict(self.holders[-1], gradients=holders.gradients(optimizer))
        else:
            found, self.counts = holders.all_holders(optimizer)
        self.holders.append(dict(found, time_us=time.time_ns() // 1000))

    def _peaks(self, *, at_oom: bool) -> dict[str, Any]:
        from . import alive

        # The phase in which memory ran out has no end of its own.
        marks = [*self.marks, self._mark(self._phase)] if at_oom else self.marks
        return alive.peaks(self._torch, self.holders, marks, at_oom=at_oom)

    @guarded
    def _exits(self) -> None:
        if self._finding or not self._cuda_runs():
            return
        self._finding = True
        if self._ended == "running":
            self._ended = "exit"
        if self.ooms and self._ended != "steps" and self.ooms[-1]["step"] == self.steps:
            self._write({})  # What was alive when memory ran out is in the file.
            return
        self.marks.append(self._mark("end"))
        self._write({})
        self._write({"peak": self._peaks(at_oom=False)})

    def _write(self, more: dict[str, Any]) -> None:
        import resource

        file = os.path.join(self.folder, f"process-{self._pid}.json")
        before: dict[str, Any] = {}
        if os.path.exists(file):
            with open(file, encoding="utf-8") as stream:
                before = json.load(stream)
        report = {
            "peak": before.get("peak"),
            **more,
            "pid": self._pid,
            "rank": int(os.environ.get("RANK", "0")),
            "world_size": int(os.environ.get("WORLD_SIZE", "1")),
            "ended": self._ended,
            "steps": self.steps,
            "step_times_s": self.step_times,
            "marks": self.marks,
            "ooms": self.ooms,
            "counts": self.counts,
            "device": self._torch.cuda.current_device(),
            "assumed": self._values.assumed,
            "versions": _versions(),
            "python": platform.python_version(),
            "host_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
            "problems": self.problems,
            "stand_ins": self.rows.made,
            "work": self._work,
        }
        with open(f"{file}.part", "w", encoding="utf-8") as stream:
            json.dump(report, stream)
        os.replace(f"{file}.part", file)


def _shown(place: places.Place | None) -> str | None:
    return None if place is None else f"{place.file}:{place.line} {places.module_of(place)}"


@functools.cache
def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _state_addresses(optimizer: Any) -> set[int]:
    from . import holders

    return holders.optimizer_state(optimizer)
