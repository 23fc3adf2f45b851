"""What differs between results, and their charts, as objects that show themselves in a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbench.errors import QbenchError
from qbench.records.record import Record

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from qbench.report.table import Table

ROWS_SHOWN = 100
"""Rows of a table that a notebook shows; `frame` has all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What differs: `frame` is the table, `sentences` say what it means."""

    title: str
    sentences: tuple[str, ...]
    table: Table | None
    """The table as a report shows it; None where there is nothing to compare."""
    rows: tuple[dict[str, Any], ...]

    @property
    def frame(self) -> pd.DataFrame:
        """The table with raw values: bytes as bytes, unknown as None."""
        import pandas as pd

        return pd.DataFrame(list(self.rows))

    def __repr__(self) -> str:
        return "\n".join((self.title, *self.sentences))

    def _repr_html_(self) -> str:
        return table_html(self.title, self.sentences, self.table)


class Figures(Mapping[str, "go.Figure"]):
    """Charts by name, each a plotly figure with title and legend."""

    def __init__(self, drawn: Mapping[str, go.Figure], captions: Mapping[str, str]) -> None:
        """`captions` says by name what is drawn, for which settings."""
        self._drawn, self.captions = dict(drawn), dict(captions)

    def __getitem__(self, name: str) -> go.Figure:
        """Return the figure of that name. Raises QbenchError, which names those that there are."""
        if name not in self._drawn:
            raise QbenchError(
                f"no chart {name!r} of these records; there are: {', '.join(self._drawn) or 'none'}"
            )
        return self._drawn[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._drawn)

    def __len__(self) -> int:
        return len(self._drawn)

    def __contains__(self, name: object) -> bool:
        return name in self._drawn

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {figure.layout.title.text}" for name, figure in self._drawn.items())

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td><code>{escape(name)}</code></td><td>{escape(str(figure.layout.title.text))}</td></tr>"
            for name, figure in self._drawn.items()
        )
        return f"<table><thead><tr><th>name</th><th>chart</th></tr></thead><tbody>{rows}</tbody></table>"


Run = Sequence[Record] | str | Path
"""Records, or where they are stored: a run folder, a .jsonl file, a .json file of `qbench plan --json`."""


def compare(run: Run, baseline: Run | None = None) -> Comparison:
    """Return QLoRA against LoRA within `run`; with `baseline`, `run` against it, as `qbench check` does.

        qbench.compare("runs/new", "runs/old").frame        # paths, or records

    The frame has one row for each pair of points, or for each metric of each point: sizes in bytes, times in
    seconds, shares in percent. `sentences` say what follows.

    Raises NotComparableError where the two runs have no point in common, or were made on different machines
    or with other settings, and RecordError where a path does not hold records.
    """
    return _methods(_records(run)) if baseline is None else _against(_records(run), _records(baseline))


def _records(run: Run) -> Sequence[Record]:
    if not isinstance(run, (str, Path)):
        return run
    from qbench.records.document import read_any

    return read_any(Path(run))


def _methods(run: Sequence[Record]) -> Comparison:
    from qbench.comparison.methods import pair_results
    from qbench.comparison.results import gather
    from qbench.report.tables import comparison_table
    from qbench.words.headline import headline

    pairs = pair_results(gather(run))
    table = comparison_table(pairs)
    said = tuple(headline(pairs)) or ("No two points with a result differ in precision alone.",)
    titles = [column.title for column in table.columns] if table else []
    rows = tuple(dict(zip(titles, row, strict=True)) for row in (table.rows if table else ()))
    return Comparison(title="QLoRA against LoRA", sentences=said, table=table, rows=rows)


def _against(run: Sequence[Record], baseline: Sequence[Record]) -> Comparison:
    from qbench.comparison.check import check
    from qbench.report.ci.check import finding_text, point_text, told_findings, verdict_lines
    from qbench.report.table import plain_table
    from qbench.words.verdicts import reason_text

    found = check(baseline, run)
    rows = tuple(
        {
            "point": point_text(finding),
            "metric": finding.metric,
            "unit": finding.unit,
            "baseline": finding.baseline,
            "run": finding.run,
            "verdict": finding.verdict,
            "gated": finding.gated,
            "note": reason_text(finding.reason),
        }
        for finding in found.findings
    )
    told = tuple((point_text(finding), finding_text(finding)) for finding in told_findings(found))
    table = plain_table(("Point", "Found"), told) if told else None
    said = tuple(verdict_lines(found, found.exit_code()))
    return Comparison(title="Now against before", sentences=said, table=table, rows=rows)


def figures(records: Run) -> Figures:
    """Return the charts that the records have data for, by name, as plotly figures: those of `qbench report`.

        qbench.figures("runs/demo")["peak"]                 # a path, or records

    Axes name their units; memory is in GiB or MiB, time in seconds. `captions` has the conditions of each.

    Raises RecordError where a path does not hold records. A name that is not among the charts raises
    QbenchError.
    """
    from qbench.comparison.results import gather
    from qbench.report.charts.all import charts

    drawn, captions = {}, {}
    for chart in charts(gather(_records(records))):
        for number, figure in enumerate(chart.figures):
            name = chart.name if number == 0 else f"{chart.name}-{number + 1}"
            drawn[name], captions[name] = _titled(figure, chart.title), chart.caption
    return Figures(drawn, captions)


def _titled(figure: go.Figure, title: str) -> go.Figure:
    """Return the figure with what a page writes around it: title and legend."""
    figure.update_layout(title={"text": escape(title, quote=False)}, showlegend=True)
    figure.update_layout(
        height=figure.layout.height + 90, margin={"t": 60}, legend={"orientation": "h", "y": -0.25}
    )
    return figure


def table_html(title: str, sentences: Sequence[str], table: Table | None) -> str:
    """Return a title, sentences and a table as HTML, all text escaped."""
    said = [f"<p><b>{escape(title)}</b></p>", *(f"<p>{escape(sentence)}</p>" for sentence in sentences)]
    if table is None:
        return "".join(said)
    shown = table.first(ROWS_SHOWN)
    head = "".join(f"<th>{escape(column.title)}</th>" for column in shown.columns)
    rows = ("".join(f"<td>{escape(text)}</td>" for text in row) for row in shown.texts())
    body = "".join(f"<tr>{cells}</tr>" for cells in rows)
    return f"{''.join(said)}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
