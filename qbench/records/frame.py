"""Records as pandas tables. The only module of the package that imports pandas."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from qbench.records.metrics import BREAKDOWN, SCALARS, scalar
from qbench.records.record import Record
from qbench.scenario.settings import SETTINGS, point_settings

_IDENTITY = ("run_id", "point_id", "kind", "outcome", "device", "created_at", "method")
_NUMBERS = (*SCALARS, *(f"breakdown.{category}" for category in BREAKDOWN))
_PANDAS_TYPES = {"integer": "Int64", "boolean": "boolean", "number": "float64"}


def records_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return one row for each record: identity, settings by short name, each metric as one number, breakdown.

    Raw lists stand as their median. Target modules stand as text. An unknown number is NaN (<NA> for
    settings and `repeat`, which keep their integers).
    """
    columns = (*_IDENTITY, "repeat", *SETTINGS, *_NUMBERS)
    frame = pd.DataFrame([_row(record) for record in records], columns=list(columns))
    return frame.astype(dict.fromkeys(_NUMBERS, "float64") | {"repeat": "Int64"} | _setting_types())


def _row(record: Record) -> dict[str, Any]:
    settings = point_settings(record.point)
    targets = settings["target_modules"]
    if isinstance(targets, tuple):
        settings["target_modules"] = ",".join(targets)
    identity = {name: getattr(record, name) for name in _IDENTITY if name != "method"}
    breakdown = record.breakdown_bytes
    return {
        **identity,
        "method": record.point.method,
        "repeat": record.repeat,
        **settings,
        **{name: scalar(record, name) for name in SCALARS},
        **{f"breakdown.{category}": breakdown.get(category) for category in BREAKDOWN},
    }


def _setting_types() -> dict[str, str]:
    kinds = {name: row.leaf.json_schema().get("type") for name, row in SETTINGS.items()}
    return {short: _PANDAS_TYPES[kind] for short, kind in kinds.items() if kind in _PANDAS_TYPES}
