"""What must be equal before two results may be compared, and what may differ and has to be reported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qbench.comparison.results import Result
from qbench.records.facts import environment_facts, facts_of, seem_alike
from qbench.records.parts import Environment

LATER_THAN_BASELINE = ("versions.", "qbench", "code_id", "python", "git_commit")
"""Facts of the environment that may differ; they are reported, since they may explain a difference."""

RELEASED = "as released"
"""Files of a library that were not edited."""


def circumstances(result: Result) -> dict[str, str]:
    """Return what must be equal before numbers may be compared, by name; what is unknown is left out."""
    return facts_of(result.records[-1]).comparable


def differing(before: Result, now: Result) -> dict[str, tuple[str, str]]:
    """Return the circumstances in which two results differ, by name: the value of each; empty when alike."""
    if seem_alike(before.records[-1], now.records[-1]):
        return {}
    ours, theirs = circumstances(before), circumstances(now)
    return {n: (ours[n], theirs[n]) for n in ours if n in theirs and ours[n] != theirs[n]}


def like(result: Result, before: Iterable[Result]) -> Result | None:
    """Return the first of the results that may be compared with one, None if there is none."""
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
    found = {name: (str(ours[name]), str(theirs[name])) for name in names if ours[name] != theirs[name]}
    return found | _edits(before.records[-1].environment, now.records[-1].environment)


def _edits(before: Environment, now: Environment) -> dict[str, tuple[str, str]]:
    """Return libraries whose files differ though the version may not: the digest of each, or RELEASED."""
    ours, theirs = before.get("fingerprints") or {}, now.get("fingerprints") or {}
    return {
        f"files of {name}": (ours[name] or RELEASED, theirs[name] or RELEASED)
        for name in ours
        if name in theirs and ours[name] != theirs[name]
    }
