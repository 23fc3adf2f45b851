"""What the processes of a command reported, as one record."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from qbench.catalog.gpus import GpuSpec
from qbench.dryrun.privacy import private_command, private_place, private_text
from qbench.dryrun.process import Ended
from qbench.dryrun.work import planned_time
from qbench.measure.environment import environment
from qbench.measure.failures import OomKind, oom_facts, oom_kind
from qbench.records.metrics import BREAKDOWN
from qbench.records.parts import Alive, Detail, Metrics, OomFacts
from qbench.records.parts import Environment as StoredEnvironment
from qbench.records.ranks import RankMemory
from qbench.records.record import Outcome, Record
from qbench.records.software import code_id
from qbench.scenario.program import Program
from qbench.scenario.schema import Point

CODE = ("catalog", "nullgpu", "dryrun")
"""What of qbench moves a dry run's numbers."""
TAIL_LINES = 25
MOST_LINES = 1000
_NAMES_ERROR = re.compile(r"(\[rank\d+\]: ?)?[\w.]*(Error|Exception|Interrupt|Exit)\b|Fatal Python error")
_OF_LAUNCHERS = ("ChildFailedError", "CalledProcessError")
"""Errors that only say that a program below failed."""
_OF_FAULTHANDLER = "Extension modules:"
"""A list of all that is loaded, which faulthandler ends with."""
NEVER_USED = "the program ended without using the card"
NO_STEP = "the program ended before its first optimizer step"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """One run of a command."""

    command: Sequence[str]
    gpu: GpuSpec
    gpus: int
    steps: int
    """Updates after which it was to end."""
    ended: Ended
    reports: Sequence[Mapping[str, Any]]
    """What the agent in each process wrote that used the card, by rank."""
    stand_ins: Sequence[str] = ()
    rank_only: bool = False


def read_reports(folder: Path) -> list[dict[str, Any]]:
    """Return what the agents wrote into a folder, in the order of ranks."""
    reports = [json.loads(file.read_bytes()) for file in sorted(folder.glob("process-*.json"))]
    return sorted(reports, key=lambda report: (report["rank"], -report["steps"]))


def record_of(ran: Ran, run_id: str) -> Record:
    """Return the record of a run, whose metrics are those of its largest rank."""
    trained = _ranks(ran.reports)
    largest = max(trained, key=lambda rank: (rank.peak_reserved, rank.peak_allocated), default=None)
    outcome = _outcome(ran)
    metrics: Metrics = {} if largest is None else largest.metrics()
    detail = _detail(ran, trained, largest, outcome)
    timed = None if largest is None else planned_time(largest.report.get("work", ()), ran.gpu)
    if timed is not None:
        metrics["step_time_s"], detail["time"] = timed
    return Record(
        run_id=run_id,
        point=_point(ran),
        kind="dryrun",
        outcome=outcome,
        metrics=metrics,
        detail=detail,
        environment=_environment(ran),
    )


def _point(ran: Ran) -> Point:
    command = private_command(ran.command)
    script = next(
        (os.path.basename(word) for word in command[1:] if word.endswith((".py", ".sh"))), command[0]
    )
    return Point(model=script, program=Program(command=command, gpus=ran.gpus))


def _environment(ran: Ran) -> StoredEnvironment:
    found: StoredEnvironment = {**environment("null", ran.gpu.name), "code_id": code_id(CODE)}
    first = ran.reports[0] if ran.reports else {}
    found["versions"] = first.get("versions") or {}
    found["fingerprints"] = {}
    found["python"] = first.get("python")
    return found


def _outcome(ran: Ran) -> Outcome:
    ended = ran.ended
    if ended.exit_code is None:
        return "timeout"
    reached = [report["ended"] == "steps" for report in ran.reports if report["steps"]]
    if ended.exit_code == 0 and reached and all(reached):
        return "ok"
    if any(_ran_out(report) for report in ran.reports):
        return "oom"
    if ended.exit_code:
        if oom_kind(ended.tail) is not None and ran.reports:
            return "oom"
        return "crashed" if ended.exit_code < 0 or ended.exit_code > 128 else "error"
    return "ok" if any(report["steps"] for report in ran.reports) else "error"


def _ran_out(report: Mapping[str, Any]) -> bool:
    """Say whether memory ran out in a process, and no update followed."""
    ooms = report["ooms"]
    return bool(ooms) and report["ended"] != "steps" and ooms[-1]["step"] == report["steps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rank:
    """One process on one card."""

    report: Mapping[str, Any]
    device: str

    def _mark(self, phase: str) -> Mapping[str, int]:
        found = [mark["devices"].get(self.device) for mark in self.report["marks"] if mark["phase"] == phase]
        return next(filter(None, found), {})

    def _most(self, name: str) -> int:
        devices = [mark["devices"].get(self.device, {}) for mark in self.report["marks"]]
        return max((int(stats.get(name, 0)) for stats in devices), default=0)

    @property
    def peak(self) -> Mapping[str, Any]:
        """What was alive at the peak."""
        return (self.report.get("peak") or {}).get(self.device) or {}

    @property
    def peak_allocated(self) -> int:
        return max(self._most("peak_allocated"), int(self.peak.get("allocated", 0)))

    @property
    def peak_reserved(self) -> int:
        reserved = [int(phase["reserved"]) for phase in self.peak.get("phases", {}).values()]
        return max(self._most("peak_reserved"), *reserved, 0)

    @property
    def static(self) -> int | None:
        return self._mark("load").get("allocated")

    @property
    def retries(self) -> int:
        return self._most("retries")

    def memory(self) -> RankMemory:
        return {
            "rank": self.report["rank"],
            "device": int(self.device),
            "static_bytes": self.static,
            "peak_allocated_bytes": self.peak_allocated,
            "peak_reserved_bytes": self.peak_reserved,
        }

    def metrics(self) -> Metrics:
        breakdown = {name: self.peak.get("breakdown", {}).get(name, 0) for name in BREAKDOWN}
        # Blocks that the allocator did not split are larger than requested.
        breakdown["temporaries"] += max(0, self.peak_allocated - sum(breakdown.values()))
        made_by = self.peak.get("made_by") or {}
        metrics: Metrics = {
            **cast(Metrics, self.report["counts"]),
            "static_bytes": self.static,
            "peak_allocated_bytes": self.peak_allocated,
            "peak_reserved_bytes": self.peak_reserved,
            "host_time_s": list(self.report["step_times_s"]),
        }
        if self.peak:
            phase = "backward" if made_by.get("is_backward") else None
            metrics["breakdown_bytes"] = breakdown
            metrics["peak_at"] = {"phase": phase, "op": None, "module": made_by.get("module")}
        return metrics


def _ranks(reports: Sequence[Mapping[str, Any]]) -> list[_Rank]:
    """Return each process that trained with each card that it used; all of them where none trained."""
    trained = [report for report in reports if report["steps"]] or reports
    found = []
    for report in trained:
        devices = {device for mark in report["marks"] for device in mark["devices"]} | set(
            report["peak"] or ()
        )
        found += [_Rank(report=report, device=device) for device in sorted(devices)]
    return found


def _detail(ran: Ran, ranks: Sequence[_Rank], largest: _Rank | None, outcome: Outcome) -> Detail:
    here = Path.cwd()
    detail: Detail = {
        "protocol": {"warmup_steps": 0, "steps": ran.steps},
        "ranks": [rank.memory() for rank in ranks],
        "stand_ins": _stand_ins(ran),
        "steps": max((report["steps"] for report in ran.reports), default=0),
    }
    if largest is not None:
        detail |= {
            "num_alloc_retries": largest.retries,
            "phases": {name: each["allocated"] for name, each in largest.peak.get("phases", {}).items()},
            "reserved_phases": {
                name: each["reserved"] for name, each in largest.peak.get("phases", {}).items()
            },
            "alive": [_alive(row, here) for row in largest.peak.get("places", ())],
            "assumed": dict(largest.report["assumed"]),
            "host_peak_bytes": largest.report["host_peak_bytes"],
        }
    detail["caveats"] = _caveats(ran)
    if outcome == "oom":
        detail |= {"oom": _oom(ran, here), "error": private_text(_error_line(ran))}
    elif outcome != "ok":
        detail |= {
            "error": private_text(_why(ran, outcome)),
            "stderr_tail": private_text(last_lines(ran.ended.tail)),
        }
    return detail


def _stand_ins(ran: Ran) -> list[str]:
    of_processes = (each for report in ran.reports for each in report.get("stand_ins", ()))
    return list(dict.fromkeys((*ran.stand_ins, *map(private_text, of_processes))))


def _alive(row: Mapping[str, Any], here: Path) -> Alive:
    places = {name: private_place(row[name], here) for name in ("place", "user")}
    return cast(Alive, {**row, **places})


def _caveats(ran: Ran) -> list[str]:
    caught = sum(len(report["ooms"]) for report in ran.reports if not _ran_out(report))
    times = f"{caught} time{'s' if caught > 1 else ''}"
    found = [f"the program went on after memory ran out {times}"] if caught else []
    problems = [
        report["problems"][0].strip().splitlines()[-1] for report in ran.reports if report["problems"]
    ]
    if ran.rank_only:
        found.append(f"rank 0 of {ran.gpus} ran alone: the others are assumed to send what it sends")
    return [
        *found,
        *(f"part of the program was not recorded: {private_text(each)}" for each in problems[:1]),
    ]


def _oom(ran: Ran, here: Path) -> OomFacts:
    """Return how memory ran out: as the allocator said, else as the program's last lines do."""
    seen = next((report["ooms"][-1] for report in ran.reports if _ran_out(report)), None)
    kind: OomKind = oom_kind(ran.ended.tail) or "torch"
    if seen is None:
        return oom_facts(ran.ended.tail, None, kind)
    facts = {
        name: seen[name]
        for name in ("phase", "requested_bytes", "total_bytes", "free_bytes", "reserved_bytes")
    }
    places = {name: private_place(seen[name], here) for name in ("place", "user")}
    return cast(OomFacts, {"kind": "torch", **facts, **places})


def _error_line(ran: Ran) -> str:
    lines = [line.strip() for line in ran.ended.tail.splitlines() if oom_kind(line) is not None]
    return lines[-1] if lines else "out of memory"


def _why(ran: Ran, outcome: Outcome) -> str:
    if outcome == "timeout":
        return "the program timed out; raise --timeout"
    code = ran.ended.exit_code or 0
    if not code:
        return NO_STEP if ran.reports else NEVER_USED
    last = _naming_line(ran.ended.tail)
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"the program {how}{f': {last}' if last else ''}"


def _naming_line(text: str) -> str:
    """Return the last line that names an error, else the last line; launchers add lines of their own."""
    lines = last_lines(text, MOST_LINES).splitlines()
    named = [
        line.strip()
        for line in lines
        if _NAMES_ERROR.match(line) and not any(launcher in line for launcher in _OF_LAUNCHERS)
    ]
    return named[-1] if named else lines[-1].strip() if lines else ""


def last_lines(text: str, count: int = TAIL_LINES) -> str:
    """Return the last lines of a program's output that are not empty; of a progress bar its last state."""
    lines = [line.rpartition("\r")[2].rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    kept = [line for line in lines if line and not line.startswith(_OF_FAULTHANDLER)]
    return "\n".join(kept[-count:])
