"""GitHub's workflow commands: one line each, escaped, and no more than GitHub shows."""

from __future__ import annotations

from qbench.comparison.check import Check, Finding
from qbench.comparison.verdicts import Failed
from qbench.records.document import RecordPlaces
from qbench.report.ci.annotations import github_annotations
from tests.comparison.hand_made import make_point

GIB = 1 << 30
POINT = make_point()
PLACES = RecordPlaces(file="baselines/a,b:c.jsonl", lines={("plan", POINT.point_id): 7})
WORSE = Finding(
    point=POINT,
    kind="plan",
    device="cuda",
    metric="peak_allocated_bytes",
    unit="bytes",
    baseline=14 * GIB,
    run=15 * GIB,
    verdict="worse",
)


def lines(*findings: Finding, strict: bool = False) -> list[str]:
    return github_annotations(Check(findings=findings), PLACES, strict=strict)


def test_a_regression_is_an_error_at_its_line_of_the_baseline():
    assert lines(WORSE) == [
        "::error file=baselines/a%2Cb%3Ac.jsonl,line=7,"
        "title=qbench%3A Llama-2-7b-hf bf16 r=16 b=1 s=2048%2C planned for cuda::"
        "worse: peak_allocated_bytes 14.00 GiB -> 15.00 GiB (+7.14 %25)"
    ]


def test_levels_by_verdict():
    verdicts = ("worse", "changed", "missing", "not comparable", "ambiguous", "new", "better", "same")
    found = [WORSE._replace(verdict=verdict) for verdict in verdicts]
    levels = [line.split()[0] for line in lines(*found)]
    assert levels == ["::error"] * 4 + ["::warning"] + ["::notice"] * 2
    strict = [line.split()[0] for line in lines(*found, strict=True)]
    assert strict == ["::error"] * 6 + ["::notice"]


def test_what_is_shown_only_is_not_marked():
    assert lines(WORSE._replace(gated=False)) == []


def test_a_text_with_line_ends_stays_one_command():
    (line,) = lines(WORSE._replace(reason=Failed("run", "100 %\r\n::error::forged")))
    assert line.endswith("; run: 100 %25%0D%0A::error::forged")
    assert "\n" not in line


def test_an_unknown_point_is_marked_at_the_first_line():
    (line,) = lines(WORSE._replace(point=make_point(r=99)))
    assert ",line=1," in line


def test_of_more_than_github_shows_the_last_line_counts_the_rest():
    found = lines(*[WORSE._replace(metric=f"metric_{n}") for n in range(12)])
    assert len(found) == 10
    assert found[-1] == "::error title=qbench::3 more; the summary and --json list them"


def test_a_baseline_outside_of_the_repository_is_named_in_the_message_alone():
    # GitHub shows nothing beside a file that the repository does not have.
    places = RecordPlaces(file="/mnt/baselines/a100.jsonl", lines={("plan", POINT.point_id): 7})
    assert github_annotations(Check(findings=(WORSE,)), places) == [
        "::error title=qbench%3A Llama-2-7b-hf bf16 r=16 b=1 s=2048%2C planned for cuda::"
        "worse: peak_allocated_bytes 14.00 GiB -> 15.00 GiB (+7.14 %25); line 7 of /mnt/baselines/a100.jsonl"
    ]
