from __future__ import annotations

from qbench.compare.results import gather
from qbench.records.metrics import METRICS
from qbench.report import fact_tables
from tests.compare.hand_made import ENVIRONMENT, make_record
from tests.report.rows import texts


def test_skipped_weights_are_listed_once():
    skipped = [{"module": "lm_head", "reason": "kept", "params": 1000, "share": 0.25}]
    records = [make_record(precision="nf4", r=r, detail={"skipped": skipped}) for r in (8, 16)]
    (row,) = texts(fact_tables.skipped_table(gather(records)))
    assert (row["Weights"], row["Parameters"], row["Share of the base"]) == ("lm_head", "1,000", "25.0 %")


def test_caveats_are_counted_by_point():
    records = [make_record(r=r, detail={"caveats": ["A", "B"] if r == 8 else ["A"]}) for r in (8, 16)]
    rows = texts(fact_tables.caveats_table(gather(records)))
    assert rows == [{"Caveat": "A", "Points": "2"}, {"Caveat": "B", "Points": "1"}]


def test_failures_keep_their_error():
    failed = make_record(
        kind="measurement", outcome="crashed", detail={"error": "exit code -9", "stderr_tail": "Killed"}
    )
    (row,) = texts(fact_tables.failures_table(gather([failed, make_record()])))
    assert (row["Ended as"], row["Error"], row["Last lines"]) == ("crashed", "exit code -9", "Killed")


def test_environment_lists_all_values():
    records = [make_record(), make_record(r=8, environment=ENVIRONMENT | {"qbench": "0.2.0"})]
    rows = {row["Fact"]: row["Plans"] for row in texts(fact_tables.environment_table(gather(records)))}
    assert rows["qbench"] == "0.1.0; 0.2.0"
    assert rows["versions.torch"] == "2.13.0"
    assert rows["git_dirty"] == "no"


def test_tables_without_data_are_none():
    results = gather([make_record(environment={})])
    found = [
        fact_tables.skipped_table,
        fact_tables.caveats_table,
        fact_tables.failures_table,
        fact_tables.environment_table,
    ]
    assert [build(results) for build in found] == [None] * 4


def test_every_metric_is_explained():
    assert [row[0] for row in fact_tables.metrics_table().rows] == list(METRICS)
