from __future__ import annotations

from qbench.comparison.results import gather
from qbench.records.metrics import METRICS
from qbench.report import fact_tables
from tests.comparison.hand_made import ENVIRONMENT, finding, make_record
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


def test_running_out_of_memory_is_told_with_its_sizes():
    oom = {"phase": "backward", "requested_bytes": 172 << 20, "free_bytes": 57 << 20}
    failed = make_record(
        kind="measurement", outcome="oom", detail={"error": "CUDA out of memory", "oom": oom}
    )
    (row,) = texts(fact_tables.failures_table(gather([failed])))
    assert (row["In phase"], row["Asked for"], row["Free"]) == ("backward", "172.0 MiB", "57.0 MiB")


def test_findings_are_counted_by_meaning_and_the_worst_come_first():
    dirty, retries = (
        finding("git_dirty", "warn", True),
        [finding("allocator_retries", "invalid", n) for n in (1, 3)],
    )
    fine = finding("warmup_steady", "ok", True)
    ledgers = [[dirty, retries[0], fine], [dirty, retries[1]], [dirty]]
    records = [
        make_record(kind="measurement", detail={"repeat": repeat, "validity": ledger})
        for repeat, ledger in enumerate(ledgers)
    ]
    table = fact_tables.findings_table(gather(records))
    assert texts(table) == [
        {
            "Finding": "allocator retries",
            "Verdict": "not valid",
            "Processes": "2",
            "Values": "1 to 3",
            "What it means": "because",
        },
        {
            "Finding": "git dirty",
            "Verdict": "note",
            "Processes": "3",
            "Values": "n/a",
            "What it means": "because",
        },
    ]
    assert table.notes == (fact_tables.VOID_NOTE,)


def test_the_memory_of_the_card_is_reconciled():
    parts = {"device": 2590, "context": 400, "reserved": 2000, "non_torch": 100, "unexplained": 90}
    detail = {
        "reconciliation_bytes": {f"{name}_bytes": size << 20 for name, size in parts.items()},
        "sampled": {"readings": {"memory_used_bytes": {"max": 2600 << 20}, "power_w": {"mean": 301.5}}},
        "energy_j_per_step": 12.5,
    }
    (row,) = texts(fact_tables.card_table(gather([make_record(kind="measurement", detail=detail)])))
    assert row["Card, grown by"] == "2.53 GiB"
    assert row["Non-torch"] == "100.0 MiB"
    assert row["Unexplained"] == "90.0 MiB"
    assert row["In use, sampled max"] == "2.54 GiB"
    assert (row["Power, mean"], row["Energy a step"]) == ("301.5 W", "12.5 J")
    assert "Temperature, max" not in row  # The driver did not say.


def test_without_a_driver_the_card_is_unknown_but_for_the_allocator():
    parts = dict.fromkeys(("device_bytes", "context_bytes", "non_torch_bytes", "unexplained_bytes"))
    detail = {"reconciliation_bytes": parts | {"reserved_bytes": 1 << 30}, "sampled": None}
    (row,) = texts(fact_tables.card_table(gather([make_record(kind="measurement", detail=detail)])))
    assert set(row) == {"Point", "Reserved"}


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
        fact_tables.findings_table,
        fact_tables.card_table,
    ]
    assert [build(results) for build in found] == [None] * 6


def test_every_metric_is_explained():
    assert [row[0] for row in fact_tables.metrics_table().rows] == list(METRICS)
