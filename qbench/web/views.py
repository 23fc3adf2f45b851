"""What the page shows for plans: figures of merit, charts, columns side by side, and which cards hold it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dash import dcc, html

from qbench.catalog.gpus import find_gpu
from qbench.errors import Problem
from qbench.records.fits import Fit
from qbench.records.metrics import BREAKDOWN, METRICS
from qbench.records.record import Record
from qbench.report.charts.style import Chart
from qbench.scenario.settings import SETTINGS
from qbench.units import NOT_AVAILABLE, format_bytes, format_count, format_seconds, format_value
from qbench.web.figures import Bar, memory_chart
from qbench.web.query import DEFAULTS, FIELDS, PageColumn, State, field_texts
from qbench.words.fit_verdict import heading, memory_sentence, reason_text, room_text
from qbench.words.phrases import category_name
from qbench.words.settings import short_model

FIGURES = (
    "peak_allocated_bytes",
    "peak_reserved_bytes",
    "device_bytes",
    "static_bytes",
    "trainable_params",
    "flops",
    "step_time_s",
    "tokens_per_s",
    "cost_usd_per_mtok",
)
"""Metrics of one plan, in the order in which they are shown; unknown ones are left out."""

OF_CARD: Mapping[str, Callable[[Fit], float | None]] = {
    "peak_allocated_bytes": lambda fit: fit.peak_allocated_bytes,
    "peak_reserved_bytes": lambda fit: fit.peak_reserved_bytes,
    "step_time_s": lambda fit: fit.step_time_s,
    "tokens_per_s": lambda fit: fit.tokens_per_s,
    "cost_usd_per_mtok": lambda fit: fit.cost_usd_per_mtok,
}
"""Metrics that depend on the card."""

OTHER_TITLES = {"gpu": "GPU", "tokens": "Tokens to train on"}
"""Fields that are no settings of a step."""

NEEDS_TO_RUN = ("step_time_s", "tokens_per_s", "cost_usd_per_mtok")
"""Metrics that a card without room for the step does not have."""

GRAPH: Any = {"displayModeBar": False, "responsive": True}


def problem_view(problems: Iterable[Problem | str]) -> list[Any]:
    """Return what replaces a missing answer: a line for each problem."""
    lines = [html.P(str(problem)) for problem in problems]
    return [html.Div([html.H2("This cannot be planned"), *lines], className="problem", role="alert")]


def answer_view(state: State, records: Sequence[Record]) -> list[Any]:
    """Return what is said first: whether the setting in the form fits, and all settings side by side."""
    failed = _failures(records)
    if records[0].outcome != "ok":
        return problem_view(failed)
    return [
        _verdict(state.settings[0], records[0]),
        *(problem_view(failed) if failed else []),
        chart_view(_memory(state, records)),
        _side_by_side(state, records),
    ]


def attributes(**values: str) -> dict[str, Any]:
    """Return attributes whose names have a dash, which Python's keywords cannot have."""
    return {name.replace("_", "-"): value for name, value in values.items()}


def _failures(records: Sequence[Record]) -> list[str]:
    return [_failure(number, record) for number, record in enumerate(records) if record.outcome != "ok"]


def _failure(number: int, record: Record) -> str:
    error = record.error or record.outcome
    return error if number == 0 else f"pinned setting {number}: {error}"


def _fit(record: Record, gpu: str) -> Fit | None:
    """Return what the plan says of one card; None if it was not checked against it."""
    return next((fit for fit in record.fits if fit.gpu == gpu), None)


def _verdict(setting: PageColumn, record: Record) -> html.Section:
    fit = next(fit for fit in record.fits if fit.gpu == setting.gpu)
    reason = reason_text(fit)
    notes = [*([f"On the card: {reason}."] if reason else []), *_followed(setting)]
    values = [(METRICS[name].title, value) for name in FIGURES if (value := _text(record, setting.gpu, name))]
    values += _training(setting, fit)
    return html.Section(
        [
            html.H2([html.Strong(f"{heading(fit)}:"), f" {memory_sentence(fit, record.device_bytes)}"]),
            html.P(_described(setting), className="scope"),
            *(html.P(note, className="note") for note in notes),
            html.Button("Pin to compare", type="button", **attributes(data_pin=setting.query)),
            html.Dl([html.Div([html.Dt(title), html.Dd(value)]) for title, value in values]),
            *([html.P(_price(fit), className="note")] if fit.fits and fit.usd_per_hour is not None else []),
        ],
        className=f"verdict {'fits' if fit.fits else 'short'}",
    )


def _followed(setting: PageColumn) -> list[str]:
    """Return what was set where the form says nothing, and is not the default."""
    lora = setting.point.lora
    if setting.texts["lora_dropout"] or lora is None or lora.lora_dropout:
        return []
    return ["The model has experts, which peft adapts only without dropout: planned with dropout 0."]


def _training(setting: PageColumn, fit: Fit) -> list[tuple[str, str]]:
    """Return the hours and the cost of the tokens in the form, where the card holds the step."""
    if not fit.fits or not fit.tokens_per_s:
        return []
    title = f"{setting.texts['tokens']} tokens"
    found = [(f"Time for {title}", format_seconds(setting.tokens / fit.tokens_per_s))]
    if fit.cost_usd_per_mtok is not None:
        found.append((f"Cost of {title}", f"${fit.cost_usd_per_mtok * setting.tokens / 1e6:,.2f}"))
    return found


def _price(fit: Fit) -> str:
    return f"{fit.gpu} from ${fit.usd_per_hour:.2f}/h ({fit.price_from})."


def _text(record: Record, gpu: str, metric: str) -> str:
    """Return a metric as text, of the card where it depends on the card; empty when unknown."""
    fit = _fit(record, gpu)
    if metric in NEEDS_TO_RUN and not (fit and fit.fits):
        return ""
    of_card = OF_CARD.get(metric)
    value = of_card(fit) if fit and of_card else record.value(metric)
    return "" if value is None else format_value(value, METRICS[metric].unit)


def _described(setting: PageColumn) -> str:
    train, lora = setting.point.train, setting.point.lora
    rank = "full" if lora is None else f"rank {lora.r}"
    autocast = "no autocast" if train.autocast == "none" else f"autocast {train.autocast}"
    checkpointing = "checkpointing" if train.gradient_checkpointing else "no checkpointing"
    return (
        f"{short_model(setting.texts['model'])}, {setting.point.precision}, {rank}, batch "
        f"{train.per_device_train_batch_size}, {train.seq_len:,} tokens, {checkpointing}, {train.optim}, "
        f"recipe {train.recipe}, {autocast}"
    )


def _memory(state: State, records: Sequence[Record]) -> Chart:
    several = len(records) > 1
    made = [
        Bar(
            name=_column_name(number) if several else setting.point.precision,
            record=record,
            card_bytes=find_gpu(setting.gpu).memory_bytes,
        )
        for number, (setting, record) in enumerate(zip(state.settings, records, strict=True))
        if record.outcome == "ok"
    ]
    return memory_chart(made)


def _column_name(number: int) -> str:
    return "now" if number == 0 else f"pin {number}"


def chart_view(chart: Chart) -> html.Figure:
    """Return a chart as the report shows it: title, caption, legend, figures."""
    legend = [
        html.Span([html.I(className=item.shape, style={"--c": item.colour}), item.name])
        for item in chart.legend
    ]
    return html.Figure(
        [
            html.Figcaption([html.H3(chart.title), html.P(chart.caption)]),
            html.Div(legend, className="legend"),
            *(_graph(chart, figure) for figure in chart.figures),
        ],
        id=f"chart-{chart.name}",
    )


def _graph(chart: Chart, figure: Any) -> html.Div:
    height = f"{figure.layout.height}px"
    graph = dcc.Graph(figure=figure, config=GRAPH, style={"height": height}, responsive=True)
    return html.Div(graph, role="img", className="plot", **attributes(aria_label=chart.title))


def _side_by_side(state: State, records: Sequence[Record]) -> html.Section:
    """Return a table with a column for each setting: in what they differ, what they need, where it goes."""
    columns = list(zip(state.settings, records, strict=True))
    names = [name for name in DEFAULTS if len({_short(setting, name) for setting, _ in columns}) > 1]
    rows = [_row(_title(name), [_short(setting, name) for setting, _ in columns]) for name in names]
    rows.append(_row("Fits", [room_text(_fit(record, setting.gpu)) for setting, record in columns]))
    for name in FIGURES:
        cells = [_text(record, setting.gpu, name) for setting, record in columns]
        if any(cells):
            rows.append(_row(METRICS[name].title, cells))
    parts = [record.breakdown_bytes for record in records]
    for name in BREAKDOWN:
        if any(part.get(name) for part in parts):
            rows.append(
                _row(f"At the peak: {category_name(name)}", [_bytes(part.get(name)) for part in parts])
            )
    heads = [
        html.Th("Setting", scope="col"),
        *(_head(number, setting) for number, setting in enumerate(state.settings)),
    ]
    table = html.Table([html.Thead(html.Tr(heads)), html.Tbody(rows)])
    return html.Section([html.H2("In numbers"), _scrolling(table, "Numbers of each setting")], id="numbers")


def _title(field: str) -> str:
    return SETTINGS[FIELDS[field]].label if field in FIELDS else OTHER_TITLES[field]


def _short(setting: PageColumn, name: str) -> str:
    """Return the text of a field as a cell shows it: a model without its owner, a count with separators."""
    text = setting.texts[name] or field_texts(setting.point)[name]
    if name == "model":
        return short_model(text)
    return format_count(int(text)) if text.isdecimal() else text


def _head(number: int, setting: PageColumn) -> html.Th:
    if number == 0:
        return html.Th("now", scope="col")
    name = _column_name(number)
    remove = html.Button(
        "remove",
        type="button",
        className="link",
        **attributes(data_unpin=str(number - 1), aria_label=f"remove {name}"),
    )
    use = html.A("use", href=f"?{setting.query}", **attributes(aria_label=f"use {name}"))
    return html.Th([name, html.Span([use, remove])], scope="col")


def _row(title: str, cells: Sequence[str]) -> html.Tr:
    return html.Tr([html.Th(title, scope="row"), *(html.Td(cell or NOT_AVAILABLE) for cell in cells)])


def _bytes(size: int | None) -> str:
    return "" if size is None else format_bytes(size)


def _scrolling(table: html.Table, label: str) -> html.Div:
    return html.Div(table, className="scroll", tabIndex="0", role="region", **attributes(aria_label=label))


def overview_view(setting: PageColumn, names: Sequence[str], records: Sequence[Record]) -> list[Any]:
    """Return a table of what fits where: a row for each card by its name, a column for each precision.

    The plans of one precision may each be checked against other cards.
    """
    held: dict[str, dict[str, Fit]] = {}
    for record in records:
        held.setdefault(record.point.precision, {}).update({fit.gpu: fit for fit in record.fits})
    if not any(held.values()):
        return []
    cards = {name: find_gpu(name).memory_bytes for name in names}
    heads = ["GPU", "Memory", *held]
    rows = [
        html.Tr(
            [
                html.Th(card, scope="row"),
                html.Td(format_bytes(cards[card])),
                *(_fit_cell(fits.get(card)) for fits in held.values()),
            ]
        )
        for card in sorted(cards, key=lambda card: cards[card])
    ]
    table = html.Table(
        [html.Thead(html.Tr([html.Th(head, scope="col") for head in heads])), html.Tbody(rows)]
    )
    note = f"{_described(setting)}; each precision in its column, each card with the kernels that it runs."
    return [html.H2("What fits where"), html.P(note, className="note"), _scrolling(table, "What fits where")]


def _fit_cell(fit: Fit | None) -> html.Td:
    if fit is None:
        return html.Td(NOT_AVAILABLE, className="na")
    return html.Td(room_text(fit), className="fits" if fit.fits else "short")
