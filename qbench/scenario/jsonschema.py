"""The JSON Schema of scenario files, which lets an editor complete keys and mark mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from qbench.scenario.schema import PointSettings, Scenario
from qbench.scenario.settings import GROUPS, LEAVES, SETTINGS

_DEFINITION = "#/$defs/{model}"


def scenario_json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a scenario file, built from the scenario classes."""
    schema = Scenario.model_json_schema(ref_template=_DEFINITION)
    point = PointSettings.model_json_schema(ref_template=_DEFINITION)
    schema["$defs"] |= point.pop("$defs")
    # A model may stand in base or vary in the matrix, so neither place alone requires it.
    del point["required"]
    schema["$defs"]["Settings"] = point | {
        "title": "Point",
        "description": "Settings that all points share.",
    }
    schema["$defs"]["Changes"] = _changes()
    changes = {"type": "array", "items": {"$ref": "#/$defs/Changes"}}
    properties = schema["properties"]
    properties["base"] = {"$ref": "#/$defs/Settings", "description": properties["base"]["description"]}
    properties["matrix"] |= {"additionalProperties": False, "properties": _each_name(_list_of)}
    properties["exclude"] |= changes
    properties["include"] |= changes
    schema["anyOf"] = [
        {"properties": {"base": {"required": ["model"]}}},
        {"properties": {"matrix": {"required": ["model"]}}, "required": ["matrix"]},
    ]
    schema["title"] = "qbench scenario"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def json_schema_text() -> str:
    """Return the schema as the text of scenarios/scenario.schema.json."""
    return json.dumps(scenario_json_schema(), indent=2, ensure_ascii=False) + "\n"


def _changes() -> dict[str, Any]:
    return {
        "type": "object",
        "description": "Settings by dotted path or short name.",
        "minProperties": 1,
        "additionalProperties": False,
        "properties": _each_name(lambda value: value),
    }


def _each_name(wrapped: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Return a property for each short name, dotted path and group of a Point."""
    properties = PointSettings.model_json_schema(ref_template=_DEFINITION)["properties"]
    values = {path: _leaf_value(path) for path in LEAVES} | {name: properties[name] for name in GROUPS}
    names = {name: row.path for name, row in SETTINGS.items()} | {path: path for path in values}
    return {name: wrapped(values[path]) for name, path in names.items()}


def _leaf_value(path: str) -> dict[str, Any]:
    leaf = LEAVES[path]
    return leaf.json_schema() | {"description": leaf.model.model_fields[leaf.name].description}


def _list_of(value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "uniqueItems": True, "items": value}
