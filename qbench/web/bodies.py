"""What a page sends with a question, checked before Dash reads it: Dash would fail on anything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Request
from werkzeug.exceptions import BadRequest, UnsupportedMediaType

QUESTIONS = "/_dash-update-component"
"""Dash's path for all questions of a page."""


def request_problem(request: Request, callbacks: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return on one line what is wrong with a question that was posted; None where nothing is.

    `callbacks` is Dash's callback_map. A body that is too large raises RequestEntityTooLarge.
    """
    try:
        body = request.get_json()
    except (BadRequest, UnsupportedMediaType, RecursionError):
        return "the body is not JSON; reload the page"
    problem = _body_problem(body, callbacks)
    return problem and f"{problem}; reload the page"


def _body_problem(body: Any, callbacks: Mapping[str, Mapping[str, Any]]) -> str | None:
    if not isinstance(body, dict):
        return "the body is no JSON object"
    output = body.get("output")
    callback = callbacks.get(output) if isinstance(output, str) else None
    # What runs in the browser has no function here.
    if callback is None or "callback" not in callback:
        return "output is none that this server makes"
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
