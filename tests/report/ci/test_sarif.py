"""SARIF 2.1.0: the keys that its schema asks for, and what makes alerts stay the same over runs."""

from __future__ import annotations

import json
from typing import Any

import qbench
from qbench.comparison.check import Check, Finding
from qbench.records.document import RecordPlaces
from qbench.report.ci.sarif import sarif_document
from tests.comparison.hand_made import make_point

POINT = make_point()
PLACES = RecordPlaces(file="baselines/my plan.jsonl", lines={("plan", POINT.point_id): 3})
WORSE = Finding(
    point=POINT,
    kind="plan",
    device="cuda",
    metric="breakdown_bytes.weights",
    unit="bytes",
    baseline=1 << 30,
    run=2 << 30,
    verdict="worse",
)


def run_of(*findings: Finding, strict: bool = False) -> dict[str, Any]:
    document = sarif_document(Check(findings=findings), PLACES, strict=strict)
    assert json.loads(json.dumps(document)) == document
    assert set(document) == {"$schema", "version", "runs"}
    assert document["version"] == "2.1.0"
    (run,) = document["runs"]
    return run


def test_the_tool_and_its_rules():
    driver = run_of(WORSE)["tool"]["driver"]
    assert (driver["name"], driver["version"]) == ("qbench", qbench.__version__)
    (rule,) = driver["rules"]
    assert rule["id"] == "breakdown_bytes"
    assert rule["shortDescription"]["text"].startswith("peak_allocated_bytes by category")


def test_a_regression_is_a_result_at_its_line():
    (result,) = run_of(WORSE)["results"]
    assert result == {
        "ruleId": "breakdown_bytes",
        "ruleIndex": 0,
        "level": "error",
        "message": {
            "text": "Llama-2-7b-hf bf16 r=16 b=1 s=2048, planned for cuda: "
            "worse: breakdown_bytes.weights 1.00 GiB -> 2.00 GiB (+100.00 %)"
        },
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": "baselines/my%20plan.jsonl"},
                    "region": {"startLine": 3},
                }
            }
        ],
        "partialFingerprints": {"qbench/v1": f"plan/cuda/{POINT.point_id}/breakdown_bytes.weights"},
    }


def test_every_metric_of_a_finding_has_a_rule():
    found = [WORSE._replace(metric=name) for name in ("point", "outcome", "flops", "dtypes")]
    run = run_of(*found)
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert [rules[result["ruleIndex"]] for result in run["results"]] == [f.metric for f in found]


def test_levels_and_what_is_left_out():
    found = [WORSE._replace(verdict=v) for v in ("worse", "ambiguous", "new", "same")]
    found.append(WORSE._replace(gated=False))
    assert [result["level"] for result in run_of(*found)["results"]] == ["error", "warning", "note"]
    assert [result["level"] for result in run_of(*found, strict=True)["results"]] == ["error"] * 3


def test_fingerprints_do_not_hang_on_numbers():
    results = [run_of(WORSE._replace(run=float(run)))["results"][0] for run in (3 << 30, 4 << 30)]
    assert results[0]["partialFingerprints"] == results[1]["partialFingerprints"]
    assert results[0]["message"] != results[1]["message"]
