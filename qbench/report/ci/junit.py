"""A check as JUnit XML: each point a test case, each value that fails it in the text of its failure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from xml.etree import ElementTree

from qbench.comparison.check import Check, Finding
from qbench.report.ci.check import finding_text, left_out_texts, point_text

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 has no way to write (section 2.2, Char)."""


def junit_xml(check: Check, *, strict: bool = False) -> bytes:
    """Return a check as a JUnit document in UTF-8.

    A point that regressed is a failure, one that could not be compared an error; what was not decided is
    told as output of a test that passed, unless `strict` makes it a failure.
    """
    cases = [_case(members, strict) for members in _points(check.findings)]
    if check.left_out:
        cases.append(_left_out(left_out_texts(check), strict))
    return _document(cases)


def failure_junit(reason: str) -> bytes:
    """Return a JUnit document of one test that ended in an error: why there is no comparison."""
    case = ElementTree.Element("testcase", {"classname": "qbench", "name": "comparison with the baseline"})
    ElementTree.SubElement(case, "error", _message([reason])).text = _clean(reason)
    return _document([case])


def _document(cases: Sequence[ElementTree.Element]) -> bytes:
    counts = {
        "tests": len(cases),
        "failures": sum(case.find("failure") is not None for case in cases),
        "errors": sum(case.find("error") is not None for case in cases),
    }
    totals = {name: str(count) for name, count in counts.items()}
    root = ElementTree.Element("testsuites", {"name": "qbench check", **totals})
    suite = ElementTree.SubElement(root, "testsuite", {"name": "qbench check", **totals})
    suite.extend(cases)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f"<?xml version='1.0' encoding='utf-8'?>\n{text}\n".encode()


def _points(findings: Iterable[Finding]) -> Iterable[list[Finding]]:
    """Return the findings of each point, kind and device."""
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.kind, finding.device, finding.point), []).append(finding)
    return groups.values()


def _case(findings: list[Finding], strict: bool) -> ElementTree.Element:
    first = findings[0]
    name = f"{point_text(first)} [{first.point.point_id}]"
    case = ElementTree.Element("testcase", {"classname": f"qbench.{first.kind}", "name": _clean(name)})
    failing = [finding for finding in findings if finding.fails_if(strict)]
    strangers = [finding for finding in findings if finding.verdict == "not comparable"]
    rest = [f for f in findings if f.verdict != "same" and f not in failing and f not in strangers]
    for tag, members in (("failure", failing), ("error", strangers)):
        if members:
            texts = list(map(finding_text, members))
            ElementTree.SubElement(case, tag, _message(texts)).text = _clean("\n".join(texts))
    if rest:
        ElementTree.SubElement(case, "system-out").text = _clean("\n".join(map(finding_text, rest)))
    return case


def _left_out(texts: Sequence[str], strict: bool) -> ElementTree.Element:
    case = ElementTree.Element("testcase", {"classname": "qbench", "name": "points of the baseline left out"})
    ElementTree.SubElement(case, "failure" if strict else "skipped", _message(texts))
    return case


def _message(texts: Iterable[str]) -> dict[str, str]:
    first, *others = texts
    more = f" (and {len(others)} more)" if others else ""
    return {"message": _clean(f"{first}{more}")}


def _clean(text: str) -> str:
    return _NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", text)
