"""What must be equal before two results may be compared, and what may differ and has to be told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from qbench.comparison.methods import environment_facts
from qbench.comparison.results import Result
from qbench.records.record import Record

LATER_THAN_BASELINE = ("versions.", "qbench", "code_id", "python", "git_commit")
"""Facts of the environment that may differ; they are told, since they may be why a number moved."""


def circumstances(result: Result) -> dict[str, str]:
    """Return what must be equal before numbers may be compared, by name; what is unknown is left out.

    For a plan: device, compute capability, allocator and input files. For a measurement: the machine, the
    settings of the process, how many steps were timed, and input files.
    """
    record = result.records[-1]
    env, detail = record.environment, record.detail
    facts: dict[str, object] = {"device": env.get("device"), **_named("content of", env.get("inputs"))}
    if result.kind == "plan":
        capability, allocator = detail.get("compute_capability"), detail.get("allocator")
        facts["compute capability"] = ".".join(map(str, capability)) if capability else None
        if allocator is not None:
            facts["allocator"] = ", ".join(f"{n}={v}" for n, v in allocator.items() if v) or "defaults"
        return _known(facts)
    machine: dict[str, object] = {"machine": env.get("device_name"), "driver": env.get("driver")}
    if env.get("device") == "cpu":
        machine["number of CPUs"] = env.get("cpu_count")
    settings = env.get("settings")
    if settings is not None:
        facts["settings"] = ", ".join(f"{name}={settings[name]}" for name in sorted(settings)) or "none"
    return _known(facts | machine | _named("", detail.get("protocol")))


def _named(prefix: str, values: Mapping[str, object] | None) -> dict[str, object]:
    return {f"{prefix} {name}".strip(): value for name, value in (values or {}).items()}


def _known(facts: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in facts.items() if value is not None}


def differing(before: Result, now: Result) -> dict[str, tuple[str, str]]:
    """Return the circumstances in which two results differ, by name: the value of each; empty when alike."""
    if _seem_alike(before.records[-1], now.records[-1]):
        return {}
    ours, theirs = circumstances(before), circumstances(now)
    return {n: (ours[n], theirs[n]) for n in ours if n in theirs and ours[n] != theirs[n]}


def _seem_alike(before: Record, now: Record) -> bool:
    """Say whether all that circumstances are read from is equal, which is cheap to see."""
    names = ("compute_capability", "allocator", "protocol")
    return before.environment == now.environment and all(
        before.detail.get(name) == now.detail.get(name) for name in names
    )


def like(result: Result, before: Iterable[Result]) -> Result | None:
    """Return the first of the results that may be compared with one, None where there is none."""
    return next((other for other in before if not differing(other, result)), None)


def newest(results: Sequence[Result]) -> list[Result]:
    """Return the latest result of each circumstances: older ones are of other versions, and stale."""
    kept: list[Result] = []
    for result in results:
        if all(differing(other, result) for other in kept):
            kept.append(result)
    return kept


def changed_since(before: Result, now: Result) -> dict[str, tuple[str, str]]:
    """Return versions and code that are others than before, by name: the value of each."""
    if before.records[-1].environment == now.records[-1].environment:
        return {}
    ours = environment_facts(before.records[-1].environment)
    theirs = environment_facts(now.records[-1].environment)
    # A baseline file keeps no commit, for one; what one side does not know is no difference.
    names = [name for name in ours if name in theirs and name.startswith(LATER_THAN_BASELINE)]
    return {name: (str(ours[name]), str(theirs[name])) for name in names if ours[name] != theirs[name]}
