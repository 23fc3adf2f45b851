"""Records as pandas tables. The only module of the package that imports pandas."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest
from typing import Any

import pandas as pd

from qbench.records.metrics import BREAKDOWN, SCALARS, scalar
from qbench.records.record import Record
from qbench.scenario.settings import LEAVES, SHORT_NAMES, point_settings

_IDENTITY = ("run_id", "point_id", "kind", "outcome", "device", "created_at", "method")
_NUMBERS = (*SCALARS, *(f"breakdown.{category}" for category in BREAKDOWN))
_STEP_COLUMNS = ("point_id", "repeat", "step", "step_time_s", "loss")
_PANDAS_TYPES = {"integer": "Int64", "boolean": "boolean", "number": "float64"}


def records_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return one row for each record: identity, settings by short name, each metric as one number, breakdown.

    Raw lists stand as their median. Target modules stand as text. An unknown number is NaN (<NA> for
    settings and `repeat`, which keep their integers).
    """
    columns = (*_IDENTITY, "repeat", *SHORT_NAMES, *_NUMBERS)
    frame = pd.DataFrame([_row(record) for record in records], columns=list(columns))
    return frame.astype(dict.fromkeys(_NUMBERS, "float64") | {"repeat": "Int64"} | _setting_types())


def steps_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return one row for each measured step: time in seconds and loss in nats per token, NaN where unknown.

    Steps count from 1 in each record. Plans, which hold no single steps, give no rows.
    """
    rows = [row for record in records for row in _steps(record)]
    frame = pd.DataFrame(rows, columns=list(_STEP_COLUMNS))
    return frame.astype({"repeat": "Int64", "step": "int64", "step_time_s": "float64", "loss": "float64"})


def _row(record: Record) -> dict[str, Any]:
    settings = point_settings(record.point)
    targets = settings["target_modules"]
    if isinstance(targets, tuple):
        settings["target_modules"] = ",".join(targets)
    identity = {name: getattr(record, name) for name in _IDENTITY if name != "method"}
    breakdown = record.metrics.get("breakdown_bytes") or {}
    return {
        **identity,
        "method": record.point.method,
        "repeat": record.detail.get("repeat"),
        **settings,
        **{name: scalar(record, name) for name in SCALARS},
        **{f"breakdown.{category}": breakdown.get(category) for category in BREAKDOWN},
    }


def _setting_types() -> dict[str, str]:
    kinds = {short: LEAVES[path].json_schema().get("type") for short, path in SHORT_NAMES.items()}
    return {short: _PANDAS_TYPES[kind] for short, kind in kinds.items() if kind in _PANDAS_TYPES}


def _steps(record: Record) -> list[tuple[Any, ...]]:
    times, losses = (_raw(record, name) for name in ("step_time_s", "loss"))
    repeat = record.detail.get("repeat")
    pairs = enumerate(zip_longest(times, losses), start=1)
    return [(record.point_id, repeat, step, time, loss) for step, (time, loss) in pairs]


def _raw(record: Record, name: str) -> list[float | None]:
    value = record.metrics.get(name)
    return value if isinstance(value, list) else []
