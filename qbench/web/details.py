"""What the page shows below the answer: what the card holds at most, the way of the bytes, texts to copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dash import html

from qbench.comparison.results import gather
from qbench.records.record import Record
from qbench.report.charts import memory, sweep
from qbench.units import format_bytes
from qbench.web.query import State, command_of, scenario_of
from qbench.web.views import attributes, chart_view
from qbench.words.settings import change_text

if TYPE_CHECKING:
    from qbench.planner.changes import Relief
    from qbench.planner.fit import Largest


def details_view(state: State, records: Sequence[Record]) -> list[Any]:
    """Return what stands below: the way of the bytes, what the plan does not know, and texts to copy."""
    if records[0].outcome != "ok":
        return []
    result = gather(records[:1])[0]
    drawn = [memory.waterfall([result]), sweep.timeline([result])]
    return [
        *(chart_view(chart) for chart in drawn if chart is not None),
        *_caveats(records[0]),
        _copies(state),
    ]


def limits_view(gpu: str, longest: Largest | None, changes: Sequence[Relief]) -> list[Any]:
    """Return the longest sequence that a card holds, and the changes each of which makes the step fit.

    `longest` is None where it could not be searched for.
    """
    said: list[Any] = [] if longest is None else [html.P(_longest_text(gpu, longest))]
    if changes:
        said += [
            html.P("Each of these changes alone makes it fit:"),
            html.Ul([html.Li(_change_text(relief)) for relief in changes]),
        ]
    return [html.H2(f"What {gpu} holds"), *said] if said else []


def _longest_text(gpu: str, longest: Largest) -> str:
    if longest.value is None:
        return f"No sequence fits, not even {longest.axis.step} tokens; the other settings decide that."
    text = f"Longest sequence with these settings: {longest.value:,} tokens"
    return f"{text}, {'where memory ends' if longest.limited_by == 'memory' else longest.axis.why}."


def _change_text(relief: Relief) -> str:
    return f"{change_text(relief.changes)}: frees {format_bytes(relief.freed_bytes)}; {relief.cost}"


def _caveats(record: Record) -> list[Any]:
    said = list(record.caveats)
    skipped = [
        f"{_share(share)} of the weights in {item['module']}: {item['reason']}"
        for item in record.skipped
        if (share := item.get("share")) is not None
    ]
    groups = (("Caveats", said), ("Not reached by quantization or LoRA", skipped))
    return [
        html.Section([html.H2(title), html.Ul([html.Li(line) for line in lines])])
        for title, lines in groups
        if lines
    ]


def _share(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "under 0.1 %"


def _copies(state: State) -> html.Section:
    return html.Section(
        [
            html.H2("Take it with you"),
            *_copy("command", "Command for the settings in the form", command_of(state.settings[0])),
            *_copy("scenario", "Scenario with all settings on the page", scenario_of(state)),
        ]
    )


def _copy(name: str, title: str, text: str) -> list[Any]:
    return [
        html.H3(title),
        html.Button(f"Copy as {name}", type="button", **attributes(data_copy=name)),
        html.Pre(text, id=name, tabIndex="0", role="region", **attributes(aria_label=title)),
    ]
