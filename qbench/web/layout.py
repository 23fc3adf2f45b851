"""The page around the answers: its form, which works without Dash, and the places that answers go to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dash import dcc, html
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from qbench.catalog.gpus import gpus
from qbench.catalog.models import models
from qbench.scenario.settings import SETTINGS, plain_default
from qbench.units import format_bytes
from qbench.web.query import DEFAULTS, FIELDS, FOLLOWING, LARGEST, MOST_PINS, Resolve
from qbench.web.runs import RunFolder, runs_view
from qbench.web.uploads import LARGEST_CONFIG

DASH_PARTS = ("metas", "title", "favicon", "css", "app_entry", "config", "scripts", "renderer")
"""What Dash puts into the page, under the names that it looks for."""


def page_layout(runs: Sequence[RunFolder], resolve: Resolve) -> html.Div:
    """Return the places that the callbacks fill, and the runs that the server was given."""
    return html.Div(
        [
            dcc.Store(id="asked"),
            dcc.Store(id="answered"),
            dcc.Store(id="surveyed"),
            dcc.Store(id="shown"),
            html.Div(html.P("Loading the libraries ...", className="note"), id="answer"),
            html.Section(id="limits"),
            html.Section(
                [html.H2("What fits where"), html.P("Planned when you open it ...", className="note")],
                id="overview",
            ),
            html.Div(id="details"),
            html.Section(runs_view(runs, resolve), id="runs"),
        ],
        id="page",
    )


def index_page() -> str:
    """Return the HTML of the page with Dash's own placeholders in it."""
    environment = Environment(
        loader=PackageLoader("qbench.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    parts = {name: Markup(f"{{%{name}%}}") for name in DASH_PARTS}
    return environment.get_template("page.html.jinja").render(
        dash=parts,
        models=models(),
        cards=_cards(),
        labels={field: SETTINGS[name].label for field, name in FIELDS.items()},
        choices=_choices(),
        defaults=DEFAULTS,
        usual_dropout=plain_default(SETTINGS["lora_dropout"]),
        largest=LARGEST,
        limits={"pins": MOST_PINS, "config_bytes": LARGEST_CONFIG},
    )


def _cards() -> list[tuple[str, str]]:
    """Return name and memory of every card that a step can be planned for, the smallest first."""
    known = sorted((gpu for gpu in gpus() if gpu.compute_capability), key=lambda gpu: gpu.memory_bytes)
    return [(gpu.name, format_bytes(gpu.memory_bytes)) for gpu in known]


def _choices() -> dict[str, Sequence[Any]]:
    """Return what each field with a fixed set of values allows."""
    schemas = {field: SETTINGS[name].leaf.json_schema() for field, name in FIELDS.items()}
    named = {field: schema["enum"] for field, schema in schemas.items() if "enum" in schema}
    switches = {field: ("yes", "no") for field, schema in schemas.items() if schema.get("type") == "boolean"}
    return {
        field: ("", *choices) if field in FOLLOWING else choices
        for field, choices in (named | switches).items()
    }
