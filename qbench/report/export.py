"""Reports as files: HTML, Markdown, CSV and Parquet, each written whole or not at all."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbench.comparison.methods import MethodPair
from qbench.comparison.results import voided
from qbench.errors import RecordError
from qbench.records.files import replaced, write_whole
from qbench.records.frame import frame_csv, records_frame, rows_csv
from qbench.records.record import Record
from qbench.records.store import collector_paused
from qbench.report.charts.all import charts
from qbench.report.charts.data import COLUMNS, chart_rows
from qbench.report.charts.style import Chart
from qbench.report.content import Content, gather_content
from qbench.report.html import html_page
from qbench.report.markdown import markdown_text
from qbench.report.trend import history_charts
from qbench.words.phrases import difference_text

if TYPE_CHECKING:
    import pandas as pd

ELSEWHERE = "name another folder with --out"


def report_frame(records: Sequence[Record], places: Sequence[str] = ()) -> pd.DataFrame:
    """Return `records_frame` with the number of each record first, and where it is stored.

    `not_valid` names the metrics of a row that its own findings declare void; reports leave them out.
    """
    frame = records_frame(records)
    frame.insert(0, "record", range(1, len(records) + 1))
    frame.insert(1, "stored_at", list(places) or None)
    frame["not_valid"] = [", ".join(sorted(voided(record))) or None for record in records]
    return frame


def csv_text(records: Sequence[Record], places: Sequence[str] = ()) -> str:
    """Return one line for each record: settings, scalar metrics and breakdown, bytes as bytes.

    A text that a spreadsheet would take for a formula begins with an apostrophe.
    """
    return frame_csv(report_frame(records, places))


def charts_csv_text(drawn: Sequence[Chart], content: Content) -> str:
    """Return one line for each mark of each chart, in the unit of its axis."""
    return rows_csv(chart_rows(drawn, content.numbers), COLUMNS)


def summary_document(content: Content) -> dict[str, Any]:
    """Return what a report says first as plain JSON values: sentences, and each pair with bytes as bytes."""
    return {
        "scope": content.scope,
        "headline": list(content.headline),
        "capacity": list(content.capacity),
        "quality": list(content.quality),
        "accuracy": content.accuracy,
        "warnings": [*content.unfinished, *content.warnings],
        "comparison": [_pair_values(pair) for pair in content.pairs],
    }


def _pair_values(pair: MethodPair) -> dict[str, Any]:
    """Return one comparison; `saved` maps each memory metric to what both sides need and the difference."""
    candidate = pair.candidate
    return {
        "kind": candidate.kind,
        "device": candidate.device,
        "settings": {name: value for name, value in candidate.settings.items() if name != "precision"},
        "baseline": pair.baseline.point.precision,
        "candidate": candidate.point.precision,
        "saved": {
            name: {
                "baseline": saving.baseline,
                "candidate": saving.candidate,
                "saved": saving.bytes,
                "percent": saving.percent,
            }
            for name, saving in pair.savings.items()
        },
        "throughput_ratio": pair.throughput_ratio,
        "differs": [difference_text(each) for each in pair.differs],
    }


def can_write_parquet() -> bool:
    """Say whether pyarrow, which the extra `parquet` brings, is installed."""
    return importlib.util.find_spec("pyarrow") is not None


@collector_paused()
def write_report(
    records: Sequence[Record],
    folder: Path,
    title: str,
    content: Content | None = None,
    places: Sequence[str] = (),
) -> dict[str, Path]:
    """Write report.html, .md, .csv, .charts.csv, and .parquet where it can; return their paths by suffix.

    `content` is that of `records` where it is gathered already; `places` says where each is stored. Raises
    RecordError when there are no records, or a file cannot be written; a file that was there
    before is then as it was.
    """
    if not records:
        raise RecordError("no records to report on; run a scenario, or name a folder that holds results")
    content = content or gather_content(records, places)
    drawn = [*charts(content.results), *history_charts(records)]
    frame = report_frame(records, places)
    texts = {
        "html": html_page(content, title, drawn),
        "md": markdown_text(content, title),
        "csv": frame_csv(frame),
        "charts.csv": charts_csv_text(drawn, content),
    }
    paths = {suffix: folder / f"report.{suffix}" for suffix in texts}
    for suffix, path in paths.items():
        write_whole(path, texts[suffix], ELSEWHERE)
    if can_write_parquet():
        paths["parquet"] = folder / "report.parquet"
        with replaced(paths["parquet"], ELSEWHERE) as part:
            frame.to_parquet(part)
    return paths
