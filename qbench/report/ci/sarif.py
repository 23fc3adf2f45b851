"""A check as SARIF 2.1.0, the format of code scanning: each finding a result at its line of the baseline."""

from __future__ import annotations

from typing import Any

from qbench.comparison.check import Check, Finding
from qbench.records.document import RecordPlaces
from qbench.records.metrics import FACTS, METRICS
from qbench.report.ci.annotations import level_of
from qbench.report.ci.check import finding_text, point_text, told_findings
from qbench.version import __version__

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

MOST_RESULTS = 5_000
"""Results of one file that GitHub shows (docs.github.com, SARIF results exceed one or more limits)."""

_LEVELS = {"error": "error", "warning": "warning", "notice": "note"}

_DESCRIBED = {
    **{row.name: row.description for row in METRICS.values()},
    **{fact.name: fact.description for fact in FACTS},
    "outcome": "How a point ended.",
    "point": "Whether a point is on both sides, and may be compared.",
}


def sarif_document(check: Check, places: RecordPlaces, *, strict: bool = False) -> dict[str, Any]:
    """Return a check as a SARIF log: one run, a rule for each metric, a result for each gated finding."""
    found = [finding for finding in told_findings(check) if finding.gated][:MOST_RESULTS]
    rules = sorted({_rule(finding) for finding in found})
    results = [_result(finding, rules, places, strict) for finding in found]
    return _log({"tool": {"driver": _driver(rules)}, "results": results})


def failure_sarif(reason: str) -> dict[str, Any]:
    """Return a SARIF log of a run that failed: why there is no comparison."""
    told = {"level": "error", "message": {"text": reason}}
    invocation = {"executionSuccessful": False, "toolExecutionNotifications": [told]}
    return _log({"tool": {"driver": _driver([])}, "invocations": [invocation], "results": []})


def _log(run: dict[str, Any]) -> dict[str, Any]:
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _driver(rules: list[str]) -> dict[str, Any]:
    described = [{"id": rule, "shortDescription": {"text": _DESCRIBED[rule]}} for rule in rules]
    return {"name": "qbench", "version": __version__, "rules": described}


def _rule(finding: Finding) -> str:
    return finding.metric.partition(".")[0]


def _result(finding: Finding, rules: list[str], places: RecordPlaces, strict: bool) -> dict[str, Any]:
    point_id, rule = finding.point.point_id, _rule(finding)
    region = {"startLine": places.line(finding.kind, point_id)}
    place = {"artifactLocation": {"uri": _uri(places.file)}, "region": region}
    return {
        "ruleId": rule,
        "ruleIndex": rules.index(rule),
        "level": _LEVELS[level_of(finding, strict)],
        "message": {"text": f"{point_text(finding)}: {finding_text(finding)}"},
        "locations": [{"physicalLocation": place}],
        # One alert stays one alert, whatever its numbers are the next time.
        "partialFingerprints": {"qbench/v1": f"{finding.kind}/{finding.device}/{point_id}/{finding.metric}"},
    }


def _uri(file: str) -> str:
    """Return a path as a URI reference: relative to the repository where it is inside."""
    from urllib.parse import quote

    return f"file://{quote(file)}" if file.startswith("/") else quote(file)
