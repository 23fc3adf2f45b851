"""A request to the page: a query string and its settings, also as command and scenario."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

from qbench.catalog.gpus import find_gpu
from qbench.errors import Problem, QbenchError, ScenarioError
from qbench.planner.workload import parse_tokens
from qbench.runs.usual import with_usual
from qbench.scenario.distributed import MOST_GPUS
from qbench.scenario.expand import point_from
from qbench.scenario.schema import Point
from qbench.scenario.settings import SETTINGS, flatten, from_text, plain_default, point_settings

FIELDS = {row.names.flag or name: name for name, row in SETTINGS.items() if row.names.page}
"""Fields of the form and of a link, spelt as the flags of `qbench plan`, and the setting each stands for."""

FOLLOWING = ("autocast", "lora_dropout")
"""Fields that follow from the others while they are empty: the recipe's autocast, no dropout with experts."""

LARGEST = {"r": 4096, "batch": 1024, "seq": 2**20, "gpus": MOST_GPUS}
"""What the page plans at most; a scenario may ask for more."""

DEFAULTS = {
    "model": "meta-llama/Llama-3.1-8B",
    **{field: plain_default(SETTINGS[name]) for field, name in FIELDS.items() if name != "model"},
    **dict.fromkeys(FOLLOWING, ""),
    "precision": "nf4-dq",
    "strategy": "fsdp2",
    "gpus": "1",
    "gpu": "RTX 4090",
    "tokens": "10M",
}
"""What the form holds when a link says nothing."""

_SEVERAL = ("strategy", "gpus")
"""Fields that mean nothing for one GPU."""

MOST_PINS = 4
LONGEST_QUERY = 8192
LONGEST_NAME = 200
LONGEST_NUMBER = 20
MOST_MODULES = 20
_YAML_WORDS = ("yes", "no", "on", "off", "true", "false", "null")

Resolve = Callable[[str], str]
"""Returns what a Point calls the model of that name; raises QbenchError for a name that is not allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageColumn:
    """One column of the page: what to train, and the card to check it against."""

    point: Point
    gpu: str
    """Name of a GPU of the catalog."""
    tokens: int
    """Tokens of the training whose hours and cost are shown."""
    texts: dict[str, str] = field(hash=False)
    """Every field as the form holds it."""

    @property
    def query(self) -> str:
        """The link that restores this setting, without its question mark; defaults are left out."""
        return urlencode({name: text for name, text in self.texts.items() if text != DEFAULTS[name]})


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All columns of the page: the setting in the form, then those that were pinned."""

    settings: tuple[PageColumn, ...]

    @property
    def query(self) -> str:
        """The link that restores the page."""
        current, *pinned = self.settings
        pins = urlencode([("pin", setting.query) for setting in pinned])
        return "&".join(filter(None, (current.query, pins)))


def read_state(query: str, resolve: Resolve) -> State:
    """Return what a query string asks for.

    Raises ScenarioError with every problem of the setting in the form, and those of a pin under its number.
    """
    query = query.removeprefix("?")
    if len(query) > LONGEST_QUERY:
        raise ScenarioError(f"the link has {len(query):,} characters, at most {LONGEST_QUERY:,} are read")
    pairs = parse_qsl(query, keep_blank_values=True)
    pins = [text for name, text in pairs if name == "pin"]
    if len(pins) > MOST_PINS:
        raise ScenarioError(f"{len(pins)} settings are pinned, at most {MOST_PINS} can be; remove one")
    settings = [_setting([pair for pair in pairs if pair[0] != "pin"], resolve)]
    for number, text in enumerate(pins, 1):
        try:
            settings.append(_setting(parse_qsl(text, keep_blank_values=True), resolve))
        except QbenchError as error:
            pinned = [f"pinned setting {number}: {problem}" for problem in error.problems]
            raise ScenarioError(pinned) from error
    return State(settings=tuple(settings))


def setting_of(point: Point, gpu: str, resolve: Resolve) -> tuple[PageColumn, tuple[str, ...]] | None:
    """Return the setting of a stored point, and the names of those of its settings that the form has no field
    for; None where the page cannot plan it."""
    texts = {**field_texts(point), "gpu": gpu}
    found: tuple[PageColumn, tuple[str, ...]] | None = None
    for given in (texts, texts | dict.fromkeys(FOLLOWING, "")):
        try:
            setting = _setting(list(given.items()), resolve)
        except QbenchError:
            continue
        wanted, shown = point_settings(point), point_settings(setting.point)
        lacking = tuple(name for name, value in wanted.items() if shown[name] != value and name != "model")
        if found is None or len(lacking) <= len(found[1]):
            found = setting, lacking
    return found


def field_texts(point: Point) -> dict[str, str]:
    """Return the settings of a point by field, as the form would hold them if none followed from others."""
    known = point_settings(point)
    several = {name: DEFAULTS[name] for name in _SEVERAL} if point.distributed is None else {}
    return {name: _as_text(known[setting]) for name, setting in FIELDS.items()} | several


def _setting(pairs: Iterable[tuple[str, str]], resolve: Resolve) -> PageColumn:
    texts, problems = dict(DEFAULTS), list[Problem]()
    for name, text in pairs:
        if name not in DEFAULTS:
            text = f"unknown; allowed: {', '.join(DEFAULTS)}, pin"
            problems.append(Problem((name[:LONGEST_NAME],), text))
        elif len(text) > LONGEST_QUERY // 4 or "\0" in text:
            problems.append(Problem((name,), "the text is too long, or not text"))
        else:
            texts[name] = text.strip()
    given = [name for name in FIELDS if name != "model" and (texts[name] or name not in FOLLOWING)]
    changes = {FIELDS[name]: _value(name, texts[name], problems) for name in given}
    if problems:
        raise ScenarioError(problems)
    gpu = find_gpu(texts["gpu"]).name
    tokens = _tokens(texts["tokens"])
    model = resolve(texts["model"])
    try:
        point = point_from({"model": model}, with_usual(model, changes))
    except ScenarioError as error:
        raise ScenarioError(_as_field(problem) for problem in error.problems) from error
    return PageColumn(point=point, gpu=gpu, tokens=tokens, texts=texts | {"gpu": gpu})


def _tokens(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ScenarioError([Problem(("tokens",), f"given {_cut(text)}; allowed: a number, such as 10M")])
    return parse_tokens(text)


def _value(field: str, text: str, problems: list[Problem]) -> Any:
    """Return the value of a field, or its text if it is not one; problems are added to `problems`."""
    row = SETTINGS[FIELDS[field]]
    value, said = from_text(row, text), ""
    if field in LARGEST and not (isinstance(value, int) and 1 <= value <= LARGEST[field]):
        said = f"given {_cut(text)}; this page plans 1 to {LARGEST[field]:,}"
    elif row.kind == "number" and isinstance(value, str):
        said = f"given {_cut(text)}; allowed: a number of at least 0 and below 1"
    elif row.is_switch and isinstance(value, str):
        said = f"given {_cut(text)}; allowed: yes, no"
    elif isinstance(value, list) and len(value) > MOST_MODULES:
        said = f"{len(value)} given; this page takes at most {MOST_MODULES}"
    if said:
        problems.append(Problem((field,), said))
    return value


def _cut(text: str) -> str:
    return repr(text) if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]!r}..."


def _as_field(problem: Problem) -> Problem:
    """Return a problem of a setting under the name of its field."""
    fields = {name: field for field, name in FIELDS.items()}
    return replace(problem, path=tuple(fields.get(str(part), part) for part in problem.path[-1:]))


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def command_of(setting: PageColumn) -> str:
    """Return the command that plans a setting in a terminal."""
    point, texts = setting.point, setting.texts
    words = ["qbench", "plan", point.model]
    for name in FIELDS:
        if name == "gradient_checkpointing":
            words += [] if point.train.gradient_checkpointing else ["--no-gradient-checkpointing"]
        elif name in _SEVERAL:
            words += [f"--{name}", texts[name]] if point.num_gpus > 1 else []
        elif name != "model" and (
            name in ("precision", "r", "batch", "seq") or texts[name] != DEFAULTS[name]
        ):
            words += [f"--{name.replace('_', '-')}", texts[name]]
    return shlex.join([*words, "--gpu", setting.gpu])


def scenario_of(state: State) -> str:
    """Return a scenario file with every setting of the page: the first as base, the others as `include`."""
    current, *pinned = state.settings
    lines = [
        "name: from-the-planner-page",
        "question: What do these settings need?",
        *_section("base:", current.point.model_dump(mode="json")),
    ]
    base = flatten(current.point.model_dump(mode="json"))
    if pinned:
        lines.append("include:")
    for setting in pinned:
        changed = flatten(setting.point.model_dump(mode="json")).items()
        changes = {path: value for path, value in changed if value != base.get(path)}
        lines.append(f"  - {_scalar(changes)}")
    gpus = list(dict.fromkeys(setting.gpu for setting in state.settings))
    return "\n".join([*lines, f"plan: {{gpus: {_scalar(gpus)}}}", ""])


def _section(title: str, values: dict[str, Any]) -> list[str]:
    groups = {name: value for name, value in values.items() if isinstance(value, dict)}
    lines = [title, *(f"  {name}: {_scalar(value)}" for name, value in values.items() if name not in groups)]
    for name, group in groups.items():
        lines += [f"  {name}:", *(f"    {key}: {_scalar(value)}" for key, value in group.items())]
    return lines


def _scalar(value: Any) -> str:
    """Return a value as JSON, of which YAML is a superset; plain words need no quotes."""
    if isinstance(value, str) and value.isascii() and value.replace("-", "").replace("_", "").isalpha():
        return json.dumps(value) if value in _YAML_WORDS else value
    return json.dumps(value, ensure_ascii=False)
