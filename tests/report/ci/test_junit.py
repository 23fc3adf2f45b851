"""JUnit XML: a test case for each point, and text that XML could not hold otherwise."""

from __future__ import annotations

from xml.etree import ElementTree

from qbench.comparison.check import Check, Finding
from qbench.comparison.verdicts import Failed
from qbench.report.ci.junit import junit_xml
from tests.comparison.hand_made import make_point

SAME = Finding(
    point=make_point(), kind="plan", device="cuda", metric="flops", baseline=1.0, run=1.0, verdict="same"
)
WORSE = SAME._replace(metric="static_bytes", run=2.0, verdict="worse")
OTHER = SAME._replace(point=make_point(r=8))


def suite(check: Check, *, strict: bool = False) -> ElementTree.Element:
    root = ElementTree.fromstring(junit_xml(check, strict=strict))
    assert root.tag == "testsuites"
    (found,) = root
    assert root.attrib == found.attrib
    return found


def counts(check: Check, *, strict: bool = False) -> tuple[str | None, ...]:
    found = suite(check, strict=strict)
    return found.get("tests"), found.get("failures"), found.get("errors")


def test_a_point_is_one_case_and_fails_with_its_worst_line():
    found = suite(Check(findings=(SAME, WORSE, WORSE._replace(metric="flops"), OTHER)))
    first, second = found
    assert (found.get("tests"), found.get("failures")) == ("2", "1")
    assert first.get("classname") == "qbench.plan"
    assert (
        first.get("name") == f"Llama-2-7b-hf bf16 r=16 b=1 s=2048, planned for cuda [{SAME.point.point_id}]"
    )
    (failure,) = first
    assert failure.get("message") == "worse: static_bytes 1 -> 2 (+100.00 %) (and 1 more)"
    assert failure.text == "worse: static_bytes 1 -> 2 (+100.00 %)\nworse: flops 1 -> 2 (+100.00 %)"
    assert list(second) == []


def test_counts_by_verdict():
    for verdict, expected, strictly in (
        ("same", ("1", "0", "0"), ("1", "0", "0")),
        ("ambiguous", ("1", "0", "0"), ("1", "1", "0")),
        ("new", ("1", "0", "0"), ("1", "1", "0")),
        ("missing", ("1", "1", "0"), ("1", "1", "0")),
        ("not comparable", ("1", "0", "1"), ("1", "0", "1")),
    ):
        check = Check(findings=(SAME._replace(verdict=verdict),))
        assert (counts(check), counts(check, strict=True)) == (expected, strictly), verdict


def test_what_passed_undecided_is_told():
    (case,) = suite(Check(findings=(SAME._replace(verdict="ambiguous", reason="not in run"),)))
    assert case.findtext("system-out") == "ambiguous: flops 1 -> 1 (+0.00 %); not in the run"


def test_what_was_left_out_is_a_case_of_its_own():
    check = Check(findings=(SAME,), left_out={"measurement": 3})
    assert suite(check)[1][0].tag == "skipped"
    assert counts(check, strict=True) == ("2", "1", "0")


def test_control_characters_and_markup_do_not_break_the_document():
    hostile = WORSE._replace(reason=Failed("run", "\x00\x1b[31m</failure><b>&\ud800"))
    (failure,) = suite(Check(findings=(hostile,)))[0]
    assert failure.text is not None
    assert failure.text.endswith("; run: \ufffd\ufffd[31m</failure><b>&\ufffd")
