from __future__ import annotations

import math
import time
from typing import Any

from qbench.records.frame import records_frame, rows_csv
from qbench.records.metrics import BREAKDOWN, SCALARS
from qbench.records.record import Record
from qbench.scenario.schema import LoraSettings, Point
from qbench.scenario.settings import SETTINGS


def record(point: Point, **changes: Any) -> Record:
    values: dict[str, Any] = {"run_id": "run", "kind": "measurement", "outcome": "ok", "metrics": {}}
    return Record(point=point, **(values | changes))


MEASURED = record(
    Point(model="m", precision="nf4", lora=LoraSettings(r=8, target_modules=("q_proj", "v_proj"))),
    metrics={
        "step_time_s": [0.3, 0.1, 0.2],
        "loss": [3.0, None],
        "peak_allocated_bytes": (1 << 40) + 1,
        "breakdown_bytes": {"weights": 1 << 40, "adapters": 1},
    },
    detail={"repeat": 2},
    environment={"device": "cuda"},
)
PLANNED = record(Point(model="m", lora=None), kind="plan", metrics={"step_time_s": 0.25})
FAILED = record(Point(model="m"), outcome="oom")


def test_one_row_for_each_record_with_identity_settings_and_metrics() -> None:
    frame = records_frame([MEASURED, PLANNED, FAILED])
    assert list(frame.columns) == [
        *("run_id", "point_id", "kind", "outcome", "device", "created_at", "method", "repeat"),
        *SETTINGS,
        *SCALARS,
        *(f"breakdown.{category}" for category in BREAKDOWN),
    ]
    assert list(frame["method"]) == ["qlora", "full", "lora"]
    assert list(frame["outcome"]) == ["ok", "ok", "oom"]
    row = frame.iloc[0]
    assert (row["point_id"], row["device"], row["repeat"]) == (MEASURED.point_id, "cuda", 2)
    assert (row["precision"], row["r"], row["target_modules"]) == ("nf4", 8, "q_proj,v_proj")
    assert (row["step_time_s"], row["loss"], row["peak_allocated_bytes"]) == (0.2, 3.0, (1 << 40) + 1)
    assert (row["breakdown.weights"], row["breakdown.adapters"]) == (1 << 40, 1)
    assert frame["step_time_s"].iloc[1] == 0.25


def test_what_is_unknown_stays_unknown() -> None:
    frame = records_frame([MEASURED, PLANNED, FAILED])
    assert math.isnan(frame["step_time_s"].iloc[2])
    assert math.isnan(frame["breakdown.optimizer"].iloc[0])
    assert list(frame["r"].isna()) == [False, True, False]
    assert list(frame["repeat"].isna()) == [False, True, True]


def test_types_do_not_depend_on_what_is_known() -> None:
    numbers = [*SCALARS, "repeat", "r", "seq_len", "use_dora", "lora_alpha", "breakdown.weights"]
    types = records_frame([MEASURED])[numbers].dtypes
    assert (records_frame([PLANNED])[numbers].dtypes == types).all()
    assert (records_frame([])[numbers].dtypes == types).all()
    assert [str(types[name]) for name in ("r", "use_dora", "loss")] == ["Int64", "boolean", "float64"]


def test_ten_thousand_records_take_little_time() -> None:
    records = [record(MEASURED.point, metrics=MEASURED.metrics)] * 10_000
    start = time.process_time()
    assert len(records_frame(records)) == 10_000
    assert time.process_time() - start < 20  # 0.4 s where nothing else runs


def test_rows_keep_whole_numbers_beside_unknown_ones_and_texts_become_no_formulas() -> None:
    rows = [{"name": "=1+1", "bytes": 2**40, "share": 0.1}, {"name": "a,b", "bytes": None, "share": -1}]
    assert rows_csv(rows) == f'name,bytes,share\n\'=1+1,{2**40},0.1\n"a,b",,-1\n'
    assert rows_csv(rows, ["share"]) == "share\n0.1\n-1\n"
    assert rows_csv([], ["share"]) == "share\n"
