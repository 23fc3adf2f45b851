from __future__ import annotations

import pytest

from qbench.comparison.results import gather
from qbench.report import fact_tables, tables
from qbench.report.fits import fits_table
from qbench.report.table import cell_text
from qbench.units import GIB
from tests.comparison.hand_made import ENVIRONMENT, finding, make_record, near_pairs, pair_methods
from tests.report.rows import texts


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "bytes", "n/a"),
        (None, "", "n/a"),
        (GIB, "bytes", "1.00 GiB"),
        (786_432, "count", "786,432"),
        (131_072, "", "131072"),
        (False, "", "no"),
        ("text", "bytes", "text"),
        (64.96, "%", "65.0 %"),
        (-99.7, "%", "-99.7 %"),
        (-187.3, "%", "-187 %"),
        (0.0123, "%", "0.012 %"),
        (0.0, "%", "0 %"),
        (0.78, "x", "0.78 x"),
    ],
)
def test_cell_text(value, unit, text):
    assert cell_text(value, unit) == text


def test_comparison():
    lora = make_record(
        metrics={"peak_allocated_bytes": 10 * GIB, "static_bytes": 8 * GIB, "trainable_params": 1000}
    )
    qlora = make_record(
        precision="nf4",
        metrics={"peak_allocated_bytes": 4 * GIB, "static_bytes": 2 * GIB, "trainable_params": 1000},
        environment=ENVIRONMENT | {"git_commit": "abc"},
    )
    table = tables.comparison_table(pair_methods([lora, qlora]))
    assert texts(table) == [
        {
            "Candidate": "QLoRA nf4",
            "Peak, baseline": "10.00 GiB",
            "Peak, candidate": "4.00 GiB",
            "Saved": "6.00 GiB",
            "Saved, share": "60.0 %",
            "At rest, saved": "75.0 %",
            "Trainable": "1,000",
        }
    ]
    assert "The baseline is LoRA bf16 throughout. All are planned for cuda." in table.notes[0]
    assert "git_commit: d4698f3 against abc" in table.notes[-1]


def test_what_differs_has_a_column_only_where_rows_differ_in_it():
    other = ENVIRONMENT | {"git_commit": "abc"}
    records = [make_record(), make_record(precision="nf4", environment=other), make_record(precision="fp4")]
    nf4, fp4 = texts(tables.comparison_table(pair_methods(records)))
    assert (nf4["Also differs"], fp4["Also differs"]) == ("git_commit", "nothing")


def test_comparison_names_models_and_settings_only_where_they_vary():
    records = [
        make_record(model=model, seq_len=s, precision=p)
        for model, s in (("a/x", 1), ("b/y", 2))
        for p in ("bf16", "nf4")
    ]
    first, second = texts(tables.comparison_table(pair_methods(records)))
    assert (first["Model"], first["Tokens"]) == ("x", "1")
    assert (second["Model"], second["Tokens"]) == ("y", "2")
    assert "Rank" not in first


def test_trainable_parameters_of_both_where_they_are_not_equal():
    records = [
        make_record(),
        make_record(precision="nf4", metrics={"peak_allocated_bytes": 1, "trainable_params": 5}),
    ]
    (row,) = texts(tables.comparison_table(pair_methods(records)))
    assert (row["Trainable, baseline"], row["Trainable, candidate"]) == ("39,976,960", "5")


def test_near_pairs_are_listed_with_what_differs():
    table = fact_tables.near_table(near_pairs([make_record(seq_len=512), make_record(precision="nf4")]))
    (row,) = texts(table)
    assert row["Differs besides precision"] == "seq_len: 512 against 2048"
    assert "Saved" not in row


def test_points_show_the_plan_beside_the_measurement():
    plan = make_record(metrics={"peak_allocated_bytes": 202 * GIB, "peak_reserved_bytes": 5})
    measured = [
        make_record(
            kind="measurement",
            detail={"repeat": i},
            metrics={"peak_allocated_bytes": 200 * GIB, "step_time_s": [2.0]},
        )
        for i in range(2)
    ]
    table = tables.points_table(gather([plan, make_record(precision="nf4"), *measured]))
    first, second = texts(table)
    assert first["Peak allocated, planned"] == "202.00 GiB"
    assert first["Peak allocated, measured"] == "200.00 GiB"
    assert first["Peak allocated, error"] == "1.00 %"  # (202 - 200) / 200
    assert first["Processes"] == "2"
    assert first["Throughput, measured"] == "1,024 tokens/s"  # 2048 tokens in 2 s
    assert (second["Planned"], second["Measured"]) == ("ok", "n/a")
    assert second["Peak allocated, error"] == "n/a"
    assert "Machine" not in first


def test_a_point_that_ran_out_of_memory_keeps_what_its_plan_knows():
    failed = make_record(kind="measurement", outcome="oom", metrics={})
    (row,) = texts(tables.points_table(gather([make_record(), failed])))
    assert (row["Measured"], row["Processes"], row["Trainable"]) == ("oom", "0", "39,976,960")
    assert row["Peak allocated, planned"] == "14.00 GiB"


def test_points_name_the_machine_where_there_are_several():
    other = ENVIRONMENT | {"device_name": "NVIDIA L4"}
    records = [
        make_record(kind="measurement", environment=environment) for environment in (ENVIRONMENT, other)
    ]
    machines = [row["Machine"] for row in texts(tables.points_table(gather([make_record(), *records])))]
    assert machines == ["NVIDIA A100-SXM4-80GB, torch 2.13.0", "NVIDIA L4, torch 2.13.0"]


def test_what_fits():
    fits = [
        {"gpu": "L4", "fits": False, "verdict": "unknown", "error": "no kernel", "tokens_per_s": 9.0},
        {"gpu": "A100", "fits": True, "verdict": "tight", "num_alloc_retries": 2, "headroom_bytes": GIB},
    ]
    rows = texts(fits_table(gather([make_record(detail={"fits": fits})])))
    # A card that does not hold the step trains at no speed.
    assert rows == [
        {"Precision": "bf16", "GPU": "L4", "Verdict": "unknown", "Why": "no kernel", "Left": "n/a"},
        {
            "Precision": "bf16",
            "GPU": "A100",
            "Verdict": "tight",
            "Why": "after 2 allocator retries",
            "Left": "1.00 GiB",
        },
    ]


def test_tables_without_data_are_none():
    assert fits_table(gather([make_record()])) is None
    assert tables.comparison_table([]) is None
    assert tables.points_table([]) is None


def test_a_long_table_says_what_it_leaves_out():
    results = gather([make_record(r=r) for r in range(1, 21)])
    table = tables.points_table(results)
    assert len(table.first(5).rows) == 5
    assert "The first 5 of 20 rows are shown" in table.first(5).notes[-1]
    assert table.first(20) is table


def test_a_point_whose_speed_is_not_valid_is_marked():
    metrics = {"peak_allocated_bytes": GIB, "step_time_s": [2.0]}
    void = {"validity": [finding("allocator_retries", "invalid", 1)]}
    records = [
        make_record(kind="measurement", r=8, metrics=metrics, detail=void),
        make_record(kind="measurement", r=16, metrics=metrics),
    ]
    void_row, valid_row = texts(tables.points_table(gather(records)))
    assert void_row["Not valid"] == "Step time, Throughput"
    assert (void_row["Step time, measured"], valid_row["Step time, measured"]) == ("n/a", "2 s")
    assert valid_row["Not valid"] == "n/a"
    assert "Not valid" not in texts(tables.points_table(gather(records[1:])))[0]


def test_a_speed_in_doubt_has_the_doubt_beside_it():
    busy = {"validity": [finding("other_cpus_busy", "warn", 1.5, "others worked")]}
    timed = {"kind": "measurement", "metrics": {"peak_allocated_bytes": GIB, "tokens_per_s": 100}}
    records = [make_record(**timed), make_record(precision="nf4", detail=busy, **timed)]
    compared = tables.comparison_table(pair_methods(records))
    titles = [column.title for column in compared.columns]
    assert titles[titles.index("Speed") + 1] == "Speed in doubt"
    assert compared.rows[0][titles.index("Speed in doubt")] == "others worked"
    points = tables.points_table(gather(records))
    place = [column.title for column in points.columns].index("Speed in doubt")
    assert [row[place] for row in points.rows] == [None, "others worked"]
    assert "Speed in doubt" not in [
        column.title for column in tables.points_table(gather(records[:1])).columns
    ]
