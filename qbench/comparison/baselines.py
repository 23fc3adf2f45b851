"""What a baseline file holds after a run was accepted: only points that changed are replaced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from qbench.comparison.check import Finding, check
from qbench.comparison.comparability import circumstances
from qbench.comparison.results import gather, oldest_first
from qbench.errors import NotComparableError
from qbench.records.parts import Detail, Environment
from qbench.records.record import Kind, Record
from qbench.scenario.schema import Point

KEPT_DETAIL = (
    "repeat",
    "protocol",
    "model",
    "static_breakdown_bytes",
    "compute_capability",
    "allocator",
    "validity",
)
"""What a check reads of the detail; timelines and the like would make every change a large one."""

KEPT_ENVIRONMENT = (
    "device",
    "device_name",
    "driver",
    "cpu_count",
    "settings",
    "inputs",
    "qbench",
    "code_id",
    "versions",
    "fingerprints",
    "python",
)

MACHINE = ("device", "machine", "driver", "number of CPUs")
"""Circumstances that are the same for all measurements of one file."""

_Key = tuple[Kind, Point]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A baseline file in the making, and what changes in it, by point label."""

    records: tuple[Record, ...]
    replaced: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    kept: int
    """Points whose records stay as they are."""
    lacking: Mapping[Kind, int]
    """Those of them that the run does not have, by kind."""
    moved: tuple[Finding, ...] = ()
    """The values for which points are replaced."""


def accept(before: Sequence[Record], run: Sequence[Record], reason: str, *, prune: bool = False) -> Accepted:
    """Return the baseline `before` with what changed in `run`; `reason` is stored with each new record.

    A point that no gated value of moved keeps its records, so that a change to the file is as small as the
    change to the numbers. Points that the run lacks are kept, or removed with `prune`. Raises
    NotComparableError when the run is empty, has a point that ended in anything but ok or oom, or was
    measured on another machine than the file's.
    """
    results = oldest_first(gather(run), run)
    latest = [record for result in results for record in sorted(result.records, key=_process)]
    if not latest:
        raise NotComparableError("the run has no records; run or plan a scenario into it first")
    failed = [record.point.label for record in latest if record.outcome not in ("ok", "oom")]
    if failed:
        raise NotComparableError(
            f"{len(failed)} of {len(latest)} records have no numbers to accept ({failed[0]}); "
            "run it again first"
        )
    _same_machine([*before, *latest])
    old, new = _grouped(before), _grouped(latest)
    moved = _moved(before, latest) if old.keys() & new.keys() else ()
    changed = {(finding.kind, finding.point) for finding in moved}
    kept = {key for key in old if (key in new and key not in changed) or (key not in new and not prune)}
    taken = [key for key in new if key not in kept]
    slim = [_slim(record, reason) for key in taken for record in new[key]]
    records = [*slim, *(record for key in kept for record in old[key])]
    return Accepted(
        records=tuple(sorted(records, key=_order)),
        replaced=_labels(key for key in taken if key in old),
        added=_labels(key for key in taken if key not in old),
        removed=_labels(key for key in old if key not in kept and key not in new),
        kept=len(kept),
        lacking=Counter(kind for kind, point in kept if (kind, point) not in new),
        moved=tuple(finding for finding in moved if finding.verdict not in ("new", "missing")),
    )


def _grouped(records: Iterable[Record]) -> dict[_Key, list[Record]]:
    groups: dict[_Key, list[Record]] = {}
    for record in records:
        groups.setdefault((record.kind, record.point), []).append(record)
    return groups


def _moved(before: Sequence[Record], run: Sequence[Record]) -> tuple[Finding, ...]:
    told = check(before, run).told
    return tuple(finding for finding in told if finding.gated and finding.verdict != "ambiguous")


def _same_machine(records: Iterable[Record]) -> None:
    """Raise NotComparableError when measurements come from more than one machine."""
    known: dict[str, str] = {}
    for result in gather(record for record in records if record.kind == "measurement"):
        facts = circumstances(result)
        for name in MACHINE:
            if name in facts and known.setdefault(name, facts[name]) != facts[name]:
                raise NotComparableError(
                    f"{name}: the file is of {known[name]}, the run of {facts[name]}; a baseline file is of "
                    "one machine, so name another file with --to"
                )


def _slim(record: Record, reason: str) -> Record:
    return replace(
        record,
        detail=cast(Detail, {**_chosen(record.detail, KEPT_DETAIL), "accepted": reason}),
        environment=cast(Environment, _chosen(record.environment, KEPT_ENVIRONMENT)),
    )


def _chosen(values: Mapping[str, object], names: Sequence[str]) -> dict[str, object]:
    return {name: values[name] for name in names if name in values}


def _order(record: Record) -> tuple[object, ...]:
    """Return a key that does not depend on when a point was accepted, so that branches merge."""
    return record.kind, record.point.model, record.point_id


def _process(record: Record) -> int:
    return record.repeat or 0


def _labels(keys: Iterable[_Key]) -> tuple[str, ...]:
    return tuple(f"{point.label} ({kind})" for kind, point in keys)
