"""The table of settings: each field of a Point by its dotted path, with the names it goes by.

Type, default and description are those of the field in `scenario.schema`; a new setting is a field there and
a row in `setting_names`. Commands, page, notebook, reports and the JSON schema read this table.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from qbench.errors import KeyPath, Problem, ScenarioError, nearest
from qbench.scenario.schema import Point, PointSettings
from qbench.scenario.setting_names import NAMES, Names
from qbench.scenario.training import LATER
from qbench.units import plain_text


@dataclass(frozen=True, slots=True)
class Leaf:
    """One field of a scenario class that holds a plain value."""

    model: type[BaseModel]
    name: str

    def normal(self, value: Any) -> Any:
        """Return `value` as the class would hold it (16 as 16.0, a list as a tuple).

        Raises pydantic.ValidationError, which is a ValueError, when the field does not allow it.
        """
        return _adapter(self).validate_python(value)

    def problem(self, value: Any, path: KeyPath = ()) -> Problem | None:
        """Return what is wrong with `value`, None when it is allowed."""
        try:
            self.normal(value)
        except ValidationError:
            return self.complaint(value, path)
        return None

    def json_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the field's values."""
        return _properties(self.model)[self.name]

    @property
    def default(self) -> Any:
        """The value where the scenario says nothing; None where its group needs one."""
        return None if self.is_required else self._field.get_default(call_default_factory=True)

    @property
    def is_required(self) -> bool:
        """Whether a group that holds this field must say it."""
        return self._field.is_required()

    @property
    def annotation(self) -> Any:
        """The type of its values, limits aside."""
        return self._field.annotation

    @property
    def _field(self) -> FieldInfo:
        return self.model.model_fields[self.name]

    def complaint(self, value: Any, path: KeyPath = ()) -> Problem:
        """Return the problem of a value that is not allowed."""
        schema = self.json_schema()
        complaint = Problem(path=path, given=value, allowed=allowed(schema))
        if isinstance(value, bool) and schema.get("type") == "string":
            return replace(complaint, note="YAML reads yes, no, on, off as booleans: quote it")
        if not isinstance(value, str):
            return complaint
        names = NAMES.get(self.name, Names(""))
        folded = value.casefold()
        meant = names.meant.get(folded.replace("-", "_")) or names.meant.get(folded.replace("-", ""))
        return replace(complaint, hint=meant or next(iter(nearest(value, schema.get("enum", ()))), ""))


@cache
def _properties(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """Return the JSON Schema of each leaf of a class: all at once, since one for each takes as long again."""
    said = ("title", "description", "default")
    return {
        name: {key: value for key, value in schema.items() if key not in said}
        for name, schema in model.model_json_schema()["properties"].items()
    }


@cache
def _adapter(leaf: Leaf) -> TypeAdapter[Any]:
    field = leaf.model.model_fields[leaf.name]
    annotation: Any = field.annotation
    if field.metadata:
        annotation = Annotated[(annotation, *field.metadata)]
    return TypeAdapter(annotation)


def group_model(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the class of a field that holds settings of its own (lora, train), None for a leaf."""
    annotation = model.model_fields[name].annotation
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def nullable(model: type[BaseModel], name: str) -> bool:
    """Return whether a field may be null."""
    return type(None) in get_args(model.model_fields[name].annotation)


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Leaf]]:
    for name in model.model_fields:
        group = group_model(model, name)
        if group is None:
            yield f"{prefix}{name}", Leaf(model, name)
        else:
            yield from _leaves(group, f"{prefix}{name}.")


LEAVES: dict[str, Leaf] = dict(_leaves(PointSettings))
"""Every plain setting of a Point by its dotted path."""

GROUPS: dict[str, type[BaseModel]] = {
    name: group
    for name in PointSettings.model_fields
    if (group := group_model(PointSettings, name)) is not None
}
"""The settings that hold settings, as lora and train do."""


_KINDS: dict[Any, str] = {int: "integer", float: "number", bool: "boolean", str: "string"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table."""

    path: str
    """Dotted path, as lora.r."""
    leaf: Leaf
    names: Names

    @property
    def name(self) -> str:
        """Name of the field: r."""
        return self.leaf.name

    @property
    def kind(self) -> str:
        """integer, number, boolean, string, or names where a list of names is allowed."""
        # That of the JSON Schema, which takes longer to make than a plan from the cache.
        return "string" if self.choices else _KINDS.get(self.leaf.annotation, "names")

    @property
    def choices(self) -> list[str]:
        """The values that it may have where they are few texts."""
        annotation = self.leaf.annotation
        return list(get_args(annotation)) if get_origin(annotation) is Literal else []

    @property
    def is_switch(self) -> bool:
        """Whether it is on or off."""
        return self.kind == "boolean"

    @property
    def help(self) -> str:
        """What it is, and the values that it may have where they are few."""
        text = str(self.leaf.model.model_fields[self.name].description)
        return f"{text.rstrip('.')}: {', '.join(self.choices)}." if self.choices else text

    @property
    def title(self) -> str:
        """Head of a column."""
        return self.names.title

    @property
    def short(self) -> str:
        """Head of a narrow column, and name in a sentence."""
        return self.names.short or self.name

    @property
    def label(self) -> str:
        """Name in a form."""
        return self.names.label or self.title


SETTINGS: dict[str, Setting] = {
    leaf.name: Setting(path, leaf, NAMES[leaf.name]) for path, leaf in LEAVES.items()
}
"""Every setting by the name of its field; a test holds that no two fields share one."""

FLAGS: dict[str, Setting] = {row.names.flag: row for row in SETTINGS.values() if row.names.flag}
"""The settings that have a flag, by flag and keyword."""

RIGHT_NAMES: dict[str, str] = {
    wrong: row.name
    for row in SETTINGS.values()
    for wrong in (*row.names.also, row.names.flag)
    if wrong not in ("", row.name)
}
"""Name that is not taken in a scenario, to the one that is."""


def resolve(name: str) -> str | None:
    """Return the dotted path of a setting from its path or short name, None when there is no such setting."""
    if name in LEAVES or name in GROUPS:
        return name
    return SETTINGS[name].path if name in SETTINGS else None


def flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings as dotted path to value. A null or empty group stays as one entry."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if key in GROUPS and value:
            flat.update({f"{key}.{name}": inner for name, inner in value.items()})
        else:
            flat[key] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by dotted path as the nested dictionary that Point reads."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        group, _, name = path.rpartition(".")
        if group:
            nested.setdefault(group, {})[name] = value
        else:
            nested[path] = value
    return nested


def by_field(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings given by keyword (the flag, the field or the dotted path) under the name of the field.

    Text stands for the value that a flag makes of it. Raises ScenarioError where two keywords set the same.
    """
    found: dict[str, Any] = {}
    for keyword, value in settings.items():
        path = FLAGS[keyword].path if keyword in FLAGS else resolve(keyword)
        name = keyword if path is None else path.rpartition(".")[2]
        if name in found:
            raise ScenarioError([Problem((keyword,), f"sets {name} a second time; keep one of the two")])
        is_text = name in SETTINGS and isinstance(value, str)
        found[name] = from_text(SETTINGS[name], value) if is_text else value
    return found


def each_value(name: str, given: Any) -> list[Any]:
    """Return the values of a setting: several where a list is given, one where it is a list of names."""
    if not isinstance(given, (list, tuple)):
        return [given]
    row = SETTINGS.get(name.rpartition(".")[2])
    is_one = row is not None and row.kind == "names" and all(isinstance(value, str) for value in given)
    return [list(given)] if is_one else list(given)


def flag_of(name: str) -> str:
    """Return how a setting's flag is spelt, without its dashes, by any name of the setting; else the name."""
    name = RIGHT_NAMES.get(name, name)
    flag = SETTINGS[name].names.flag if name in SETTINGS else ""
    return (flag or name).replace("_", "-")


def plain_default(row: Setting) -> str:
    """Return the default of a setting as its flag or field would have it; none where it has to be given."""
    is_required = row.leaf.model.model_fields[row.name].is_required()
    return "none" if is_required else plain_text(row.leaf.default)


def from_text(row: Setting, text: str) -> Any:
    """Return the value that a text stands for; the text itself where it stands for none.

    4k is 4,096 for a whole number, yes and no are those of a switch, names are separated by commas; the case
    of a choice does not matter.
    """
    text = text.strip()
    choices = row.choices
    if choices:
        return next((choice for choice in choices if choice == text.casefold()), text)
    if row.kind == "integer" and (match := re.fullmatch(r"([+-]?[0-9]{1,30})([kK]?)", text)):
        return int(match.group(1)) * (1024 if match.group(2) else 1)
    if row.kind == "boolean":
        return {"yes": True, "no": False}.get(text, text)
    if row.kind == "names" and text != "all-linear":
        return [name.strip() for name in text.split(",")]
    if row.kind == "number":
        with contextlib.suppress(ValueError):
            return float(text)
    return text


def point_settings(point: Point) -> dict[str, Any]:
    """Return each setting of a point by its short name; those of an absent adapter are None."""
    flat = flatten(point.model_dump())
    later = (SETTINGS[name] for name in (*LATER, "task", "torch_compile", "bnb_4bit_quant_storage"))
    flat = {row.path: row.leaf.default for row in later} | flat
    if point.lora is not None:
        flat = {"lora.modules_to_save": ()} | flat
    return {name: flat.get(row.path) for name, row in SETTINGS.items()}


def allowed(schema: Mapping[str, Any]) -> str:
    """Return in words which values a JSON Schema of a leaf allows."""
    if "anyOf" in schema:
        return " or ".join(allowed(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(schema["enum"])
    if schema["type"] == "array":
        return f"a list of {'at least one ' * ('minItems' in schema)}{allowed(schema['items'])}"
    if "pattern" in schema:
        return f"text that matches {schema['pattern']}"
    words = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text"}
    kind = words[schema["type"]]
    if "minimum" in schema and "maximum" in schema:
        return f"{kind} from {schema['minimum']:,} to {schema['maximum']:,}"
    limits = {
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "exclusiveMaximum": "below",
        "maximum": "at most",
    }
    bounds = " and ".join(f"{word} {schema[key]:,g}" for key, word in limits.items() if key in schema)
    return f"{kind} {bounds}".rstrip()
