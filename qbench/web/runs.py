"""Run folders that the server was given: their reports, and their points as links into the planner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dash import html

from qbench.catalog.gpus import gpus
from qbench.records.document import read_any
from qbench.records.record import Record
from qbench.report.content import Content, gather_content
from qbench.report.export import csv_text
from qbench.report.html import html_page
from qbench.report.markdown import markdown_text
from qbench.scenario.schema import Point
from qbench.scenario.settings import SETTINGS
from qbench.web.query import DEFAULTS, Resolve, setting_of

MOST_LINKS = 100
"""Points of one run that are linked; its report lists all."""


@dataclass(slots=True, kw_only=True)
class RunFolder:
    """One run that the page may read; it is read again when it has changed."""

    path: Path
    name: str
    _state: tuple[int, int] | None = None
    _records: list[Record] = field(default_factory=list)
    _content: Content | None = None
    _page: str = ""

    def records(self) -> list[Record]:
        """Return the records. Raises RecordError when they cannot be read."""
        self._read()
        return self._records

    def content(self) -> Content:
        """Return what a report says of the run."""
        self._read()
        if self._content is None:
            self._content = gather_content(self._records)
        return self._content

    def file(self, suffix: str) -> str:
        """Return the report as text: html, md or csv. Raises KeyError for any other suffix."""
        content = self.content()
        if suffix == "html" and not self._page:
            self._page = html_page(content, self.name)
        texts = {
            "html": lambda: self._page,
            "md": lambda: markdown_text(content, self.name),
            "csv": lambda: csv_text(self._records),
        }
        return texts[suffix]()

    def _read(self) -> None:
        file = self.path / "records.jsonl" if self.path.is_dir() else self.path
        state = (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else (0, 0)
        if state != self._state:
            self._records = read_any(self.path)
            self._state, self._content, self._page = state, None, ""


def open_runs(paths: Sequence[Path]) -> list[RunFolder]:
    """Return the runs of these folders, read once. Raises RecordError for what is no run."""
    runs = [RunFolder(path=path.resolve(), name=path.resolve().name) for path in paths]
    for run in runs:
        run.records()
    return runs


def runs_view(runs: Sequence[RunFolder], resolve: Resolve) -> list[Any]:
    """Return a section for each run: what it is about, its report, and its points as links."""
    if not runs:
        return []
    return [html.H2("Runs"), *(_run_view(number, run, resolve) for number, run in enumerate(runs))]


def _run_view(number: int, run: RunFolder, resolve: Resolve) -> html.Details:
    content = run.content()
    points = list(dict.fromkeys(record.point for record in run.records()))
    card = _card(run.records())
    rest = len(points) - MOST_LINKS
    more = [html.P(f"{rest:,} more points are in the report.", className="note")] if rest > 0 else []
    return html.Details(
        [
            html.Summary(run.name),
            html.P(content.scope, className="note"),
            html.Ul([html.Li(sentence) for sentence in content.sentences[:3]]),
            html.P(
                [
                    html.A("Report with tables and charts", href=f"/run/{number}/"),
                    " ",
                    html.A("CSV", href=f"/run/{number}/report.csv"),
                    " ",
                    html.A("Markdown", href=f"/run/{number}/report.md"),
                ],
                className="links",
            ),
            html.H3("Points, to be opened in the form"),
            html.Ul(
                [html.Li(_point_link(point, card, resolve)) for point in points[:MOST_LINKS]],
                className="points",
            ),
            *more,
        ],
        open=len(run.records()) > 0 and number == 0,
    )


def _point_link(point: Point, gpu: str, resolve: Resolve) -> Any:
    """Return a link to the form where that can ask for the point, with what it lacks, else its name."""
    found = setting_of(point, gpu, resolve)
    if found is None:
        return point.label
    setting, lacking = found
    names = ", ".join(SETTINGS[name].short for name in lacking)
    return [
        html.A(point.label, href=f"/?{setting.query}"),
        *([html.Span(f" (without its {names})", className="note")] if names else []),
    ]


def _card(records: Sequence[Record]) -> str:
    """Return the first card that a run was checked against and that the form has, else the form's own."""
    known = {gpu.name for gpu in gpus() if gpu.compute_capability}
    return next((fit.gpu for record in records for fit in record.fits if fit.gpu in known), DEFAULTS["gpu"])
