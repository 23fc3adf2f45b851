"""The server of the page: for the browser of this machine only, from the given folders only."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dash import Dash
from dash.exceptions import DependencyException
from flask import Flask, Request, Response, abort, jsonify, request
from werkzeug.exceptions import BadRequest, UnsupportedMediaType
from werkzeug.serving import BaseWSGIServer, make_server

from qbench.errors import QbenchError
from qbench.records.files import cache_folder
from qbench.records.plan_cache import PlanCache
from qbench.web.callbacks import add_callbacks
from qbench.web.layout import index_page, page_layout
from qbench.web.plan_queue import PlanQueue
from qbench.web.runs import RunFolder
from qbench.web.uploads import LARGEST_CONFIG, Uploads

HOST = "127.0.0.1"
OWN_NAMES = {"127.0.0.1", "localhost"}
"""Names under which a browser may ask. Any other came from a page that had its own name point here."""

EVERY_PATH = "/<path:path>"
"""Dash's rule that answers each unknown path with the page."""

QUESTIONS = "/_dash-update-component"
"""Dash's path for all questions of a page."""

LARGEST_REQUEST = 2 * LARGEST_CONFIG
TYPES = {"html": "text/html", "md": "text/markdown", "csv": "text/csv"}


class PlannerPage:
    """The page with its queue of plans. `app` is the WSGI application; `close` ends the queue's thread."""

    def __init__(self, runs: Sequence[RunFolder] = (), folder: Path | None = None) -> None:
        """`folder` keeps the configs that are dropped; None is the user's cache folder."""
        self.plans = PlanQueue(PlanCache())
        self._uploads = Uploads(folder or cache_folder() / "configs")
        self._runs = runs
        self._dash = dash = Dash(
            "qbench.web",
            title="qbench planner",
            update_title="",
            assets_folder=str(Path(__file__).with_name("assets")),
            index_string=index_page(),
        )
        dash.layout = lambda: page_layout(self._runs, self._uploads.resolve)
        add_callbacks(dash, self.plans, self._uploads)
        self.app: Flask = dash.server
        self._policy = _policy(dash.csp_hashes())
        self._add_routes()
        self.plans.start()

    def close(self) -> None:
        """Answer no more questions."""
        self.plans.close()

    def _add_routes(self) -> None:
        self.app.config["MAX_CONTENT_LENGTH"] = LARGEST_REQUEST
        self.app.before_request(_refuse_strangers)
        self.app.before_request(self._refuse_malformed)
        self.app.after_request(self._with_headers)
        self.app.register_error_handler(DependencyException, _no_such_file)
        self.app.add_url_rule("/config", view_func=self._keep_config, methods=["POST"])
        self.app.add_url_rule("/run/<int:number>/", view_func=self._run_file, defaults={"suffix": "html"})
        self.app.add_url_rule("/run/<int:number>/report.<suffix>", view_func=self._run_file)

    def _refuse_malformed(self) -> Response | None:
        """Answer a question that Dash would fail on with 400 and a line; None for all else."""
        if request.path != QUESTIONS or request.method != "POST":
            return None
        problem = _request_problem(request, self._dash.callback_map)
        return None if problem is None else Response(problem, 400, mimetype="text/plain")

    def _keep_config(self) -> Response:
        try:
            name = self._uploads.keep(request.get_data())
        except QbenchError as error:
            return jsonify(error=str(error))
        return jsonify(model=name, about=f"taken as {name}")

    def _run_file(self, number: int, suffix: str) -> Response:
        if number >= len(self._runs) or suffix not in TYPES:
            abort(404)
        try:
            text = self._runs[number].file(suffix)
        except QbenchError as error:
            return Response(str(error), 503, mimetype="text/plain")
        return Response(text, mimetype=TYPES[suffix])

    def _with_headers(self, response: Response) -> Response:
        # A report carries a policy of its own, which allows its inline scripts and no network.
        if not request.path.startswith("/run/"):
            response.headers["Content-Security-Policy"] = self._policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["X-Frame-Options"] = "DENY"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response


def _policy(script_hashes: Sequence[str]) -> str:
    """Return a content security policy that lets the page load from this server alone."""
    return (
        f"default-src 'none'; script-src 'self' {' '.join(script_hashes)}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; form-action 'none'; "
        "base-uri 'none'; frame-ancestors 'none'"
    )


def _no_such_file(error: DependencyException) -> Response:
    """Answer for a script that Dash does not have; its exception would be an error of the server."""
    return Response("no such file", 404, mimetype="text/plain")


def _refuse_strangers() -> None:
    """End a request with 403 that a foreign page may have sent, and with 404 for what the page never asks."""
    host = request.headers.get("Host", "")
    origin = request.headers.get("Origin")
    name, _, port = host.partition(":")
    if name not in OWN_NAMES or not (host == name or re.fullmatch("[0-9]{1,5}", port)):
        abort(403, "this server answers to 127.0.0.1 and localhost only")
    if origin is not None and origin != f"http://{host}":
        abort(403, "this server answers its own page only")
    if request.url_rule is not None and request.url_rule.rule == EVERY_PATH:
        abort(404)


def _request_problem(sent: Request, callbacks: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return on one line what is wrong with a question that was posted; None where nothing is.

    `callbacks` is Dash's callback_map. A body that is too large raises RequestEntityTooLarge.
    """
    try:
        body = sent.get_json()
    except (BadRequest, UnsupportedMediaType, RecursionError):
        return "the body is not JSON; reload the page"
    problem = _body_problem(body, callbacks)
    return problem and f"{problem}; reload the page"


def _body_problem(body: Any, callbacks: Mapping[str, Mapping[str, Any]]) -> str | None:
    if not isinstance(body, dict):
        return "the body is not a JSON object"
    output = body.get("output")
    callback = callbacks.get(output) if isinstance(output, str) else None
    # What runs in the browser has no function here.
    if callback is None or "callback" not in callback:
        return "unknown output"
    outputs = body.get("outputs")
    names = _names(outputs if isinstance(outputs, list) else [outputs])
    if names is None or output != (f"..{'...'.join(names)}.." if isinstance(outputs, list) else names[0]):
        return "outputs are not those of output"
    for key, found in (("inputs", body.get("inputs")), ("state", body.get("state", []))):
        wanted = _names(callback[key])
        if not isinstance(found, list) or _names(found) != wanted:
            return f"{key} must be {', '.join(wanted or ()) or 'empty'}"
    changed = body.get("changedPropIds", [])
    if not isinstance(changed, list) or not all(isinstance(name, str) for name in changed):
        return "changedPropIds must be a list of names"
    return None


def _names(properties: list[Any]) -> list[str] | None:
    """Return each property of a component as 'id.property'; None where one is something else."""
    names = []
    for each in properties:
        component, name = (each.get("id"), each.get("property")) if isinstance(each, dict) else (None, None)
        if not isinstance(component, str) or not isinstance(name, str):
            return None
        names.append(f"{component}.{name}")
    return names


def bind(page: PlannerPage, port: int) -> BaseWSGIServer:
    """Return a server of the page that listens on a port of this machine; 0 takes a free one.

    Raises QbenchError when the port is unavailable.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise QbenchError(
            f"--port: {port} is unavailable ({error.strerror}); choose another, or 0 for any free port"
        ) from error
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    bound: Any = listening.getsockname()[1]
    # werkzeug takes a copy of the socket.
    server = make_server(HOST, bound, page.app, threaded=True, fd=listening.fileno())
    listening.close()
    return server
