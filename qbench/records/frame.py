"""Records as pandas tables. The only module of the package that imports pandas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from qbench.records.metrics import BREAKDOWN, SCALARS, scalar
from qbench.records.record import Record
from qbench.scenario.settings import SETTINGS, point_settings

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""First characters by which a spreadsheet takes a text for a formula."""

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


def frame_csv(frame: pd.DataFrame) -> str:
    """Return a frame as CSV, unknown values empty, texts so that no spreadsheet takes one for a formula."""
    texts = frame.select_dtypes(include=["object", "string"]).columns
    # `Series.map` would make floats of whole numbers beside unknown ones.
    harmless = frame.assign(
        **{name: pd.Series(map(_harmless, frame[name]), frame.index, object) for name in texts}
    )
    return str(harmless.to_csv(index=False, lineterminator="\n"))


def rows_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Return rows as CSV as `frame_csv` does; whole numbers stay whole beside unknown ones."""
    return frame_csv(
        pd.DataFrame(list(rows), columns=None if columns is None else list(columns), dtype=object)
    )


def _harmless(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    # The csv module leaves a lone carriage return without quotes, and readers end the row there.
    text = value.replace("\r", " ")
    return f"'{text}" if value.startswith(FORMULA_STARTS) else text
