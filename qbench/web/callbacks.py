"""How the page is wired: a request from the form, its answer, and the overview once it is opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from dash import ClientsideFunction, Dash, Input, Output
from dash.exceptions import PreventUpdate

from qbench.catalog.gpus import GpuSpec, find_gpu
from qbench.errors import QbenchError, StepError
from qbench.records.record import Record
from qbench.runs.plans import PlanFor
from qbench.scenario.schema import PRECISIONS, Point
from qbench.web.details import details_view, limits_view
from qbench.web.plan_process import Question, Superseded
from qbench.web.plan_queue import Part, PlanQueue
from qbench.web.query import State, read_state
from qbench.web.uploads import Uploads
from qbench.web.views import answer_view, overview_view, problem_view

if TYPE_CHECKING:
    from qbench.planner.changes import Relief
    from qbench.planner.fit import Largest

CARDS = (
    "RTX 3060 12GB",
    "RTX 4060 Ti 16GB",
    "A10G",
    "RTX 4090",
    "RTX 5090",
    "A100-SXM4-40GB",
    "L40S",
    "A100-SXM4-80GB",
    "H100 SXM",
    "H200 SXM",
    "B200",
)
"""Cards of the overview, one of each size; the one in the form is added."""

OVERVIEW_PRECISIONS = ("bf16", "int8", "nf4", "nf4-dq")

LONGEST_READER = 64
LARGEST_STAMP = 2**53
"""A stamp is a browser's clock in milliseconds; no browser counts beyond it."""


OnCard = Callable[[Sequence[Point]], list[Record]]
"""Gives the plan of each point, checked against the card of the form."""


def add_callbacks(app: Dash, plans: PlanQueue, uploads: Uploads) -> None:
    """Wire the page. Its scripts put questions into the stores `asked` and `surveyed`."""

    def planned(asked: Any, part: Part, questions: Callable[[State], Sequence[Question]]) -> Any:
        query, reader, stamp = _question(asked)
        try:
            state = read_state(query, uploads.resolve)
            records = plans.plan(reader, part, stamp, questions(state))
        except Superseded:
            raise PreventUpdate from None
        return state, records

    @app.callback(Output("answer", "children"), Output("answered", "data"), Input("asked", "data"))
    def answer(asked: Any) -> tuple[list[Any], Any]:
        try:
            state, records = planned(asked, "answer", _of_each_setting)
        except QbenchError as error:
            return problem_view(error.problems), _echo(asked)
        return answer_view(state, records), _echo(asked)

    # The details come after the answer, which should not wait for them to be drawn.
    @app.callback(Output("details", "children"), Input("answered", "data"))
    def details(asked: Any) -> list[Any]:
        try:
            state, records = planned(asked, "details", _of_each_setting)
        except QbenchError:
            return []  # The answer says what is wrong.
        return details_view(state, records)

    @app.callback(Output("limits", "children"), Input("answered", "data"))
    def limits(asked: Any) -> list[Any]:
        return _limits(asked, plans, uploads)

    @app.callback(Output("overview", "children"), Input("surveyed", "data"))
    def overview(asked: Any) -> list[Any]:
        try:
            state, records = planned(asked, "overview", _of_each_precision)
        except QbenchError:
            return []
        return overview_view(state.settings[0], _cards(state), records)

    in_browser: Any = app.clientside_callback  # It has no annotations.
    start = ClientsideFunction(namespace="qbench", function_name="start")
    in_browser(start, Output("asked", "data"), Input("page", "id"))
    rest = ClientsideFunction(namespace="qbench", function_name="answered")
    in_browser(rest, Output("shown", "data"), Input("answered", "data"))


def _limits(asked: Any, plans: PlanQueue, uploads: Uploads) -> list[Any]:
    """Return the view of what a card holds at most, each plan of the search made when it is needed."""
    query, reader, stamp = _question(asked)

    def one_by_one(settings: PlanFor, points: Sequence[Point]) -> list[Record]:
        return plans.plan(reader, "limits", stamp, [(point, settings) for point in points])

    try:
        setting = read_state(query, uploads.resolve).settings[0]
        on_card = partial(one_by_one, PlanFor(gpus=(find_gpu(setting.gpu),)))
        (record,) = on_card([setting.point])
        if record.outcome != "ok" or record.fits[0].verdict == "unknown":
            return []
        return limits_view(setting.gpu, _longest(setting.point, on_card), _changes(record, on_card))
    except Superseded:
        raise PreventUpdate from None
    except QbenchError:
        return []  # The answer says what is wrong.


def _longest(point: Point, on_card: OnCard) -> Largest | None:
    from qbench.planner.fit import axis_of, largest

    try:
        return largest(point, axis_of(point, "seq_len"), on_card, with_reliefs=False)
    except StepError:
        return None


def _changes(record: Record, on_card: OnCard) -> list[Relief]:
    from qbench.planner.changes import reliefs

    if record.fits[0].fits:
        return []
    return [relief for relief in reliefs(record, "", on_card) if relief.fits]


def _question(asked: Any) -> tuple[str, str, float]:
    """Return query, reader and stamp of what a page sent; whatever else comes is not answered."""
    if not isinstance(asked, dict):
        raise PreventUpdate
    query, reader, stamp = asked.get("query"), asked.get("reader"), asked.get("stamp")
    if not isinstance(query, str) or not isinstance(reader, str) or not isinstance(stamp, (int, float)):
        raise PreventUpdate
    if not abs(stamp) <= LARGEST_STAMP:  # NaN is refused, too.
        raise PreventUpdate
    return query, reader[:LONGEST_READER], float(stamp)


def _echo(asked: dict[str, Any]) -> dict[str, Any]:
    """Return a question as it came, without what else was sent with it."""
    return {name: asked[name] for name in ("query", "reader", "stamp")}


def _of_each_setting(state: State) -> list[Question]:
    return [(setting.point, PlanFor(gpus=(find_gpu(setting.gpu),))) for setting in state.settings]


def _of_each_precision(state: State) -> list[Question]:
    """Return a question for each precision and generation of cards: answers wait for one of them at most."""
    setting = state.settings[0]
    chosen = {*OVERVIEW_PRECISIONS, setting.point.precision}
    generations: dict[Any, list[GpuSpec]] = {}
    for gpu in map(find_gpu, _cards(state)):
        generations.setdefault((gpu.compute_capability or (0,))[0], []).append(gpu)
    return [
        (_with_precision(setting.point, name), PlanFor(gpus=tuple(cards)))
        for name in PRECISIONS
        if name in chosen
        for cards in generations.values()
    ]


def _cards(state: State) -> list[str]:
    return list(dict.fromkeys((state.settings[0].gpu, *CARDS)))


def _with_precision(point: Point, precision: str) -> Point:
    return point.model_copy(update={"precision": precision})
