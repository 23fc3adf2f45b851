"""Scenario files: YAML to Scenario, or every problem of the file with its line. Nothing else reads YAML."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from qbench.errors import KeyPath, Problem, ScenarioError, shown
from qbench.files import open_file
from qbench.scenario.expand import MAX_POINTS, combined, read_sections
from qbench.scenario.schema import Point, Scenario
from qbench.scenario.settings import resolve
from qbench.scenario.validate import problems_of
from qbench.units import format_bytes

MAX_FILE_BYTES = 64 * 1024
"""Largest scenario file that is read."""

MAX_NODES = 20_000
"""Most keys and values of a scenario, each alias counted as often as it is used."""

MAX_DEPTH = 20
"""Deepest nesting of a scenario; the format itself needs five."""

_YAML = "tag:yaml.org,2002:"
_TEXT_TAG = f"{_YAML}str"
_SCALAR_TAGS = frozenset(f"{_YAML}{kind}" for kind in ("null", "bool", "int", "float", "str"))
_COLLECTION_TAGS = frozenset(f"{_YAML}{kind}" for kind in ("map", "seq"))
_SECTIONS: tuple[KeyPath, ...] = (("base",), ("matrix",), ("exclude",), ("include",))


def read_scenario(path: Path, max_points: int = MAX_POINTS) -> tuple[Scenario, tuple[Point, ...]]:
    """Return the scenario of a YAML file and its points; relative paths in it count from the file's folder.

    Raises ScenarioError with all problems of the file, each with its line.
    """
    document = _Document(Path(path))
    values = _with_absolute_paths(document.read(), document.file.parent.absolute())
    try:
        scenario, problems = Scenario.model_validate(values), []
    except ValidationError as error:
        scenario, problems = None, list(problems_of(error, Scenario, values))
    sections = read_sections(values, problems)
    is_whole = not any(problem.path[:1] in _SECTIONS for problem in problems)
    points = combined(sections, max_points, problems) if is_whole else ()
    if scenario is None or problems or document.problems:
        raise ScenarioError(document.located(problems))
    return scenario, points


def load_scenario(path: Path, max_points: int = MAX_POINTS) -> Scenario:
    """Return the scenario of a YAML file, as `read_scenario` does."""
    return read_scenario(path, max_points)[0]


def load_mapping(file: Path) -> dict[str, Any]:
    """Return the values of any YAML or JSON file that holds keys, as another tool's config does.

    Raises ScenarioError when the file cannot be read or holds something else.
    """
    if not file.exists():
        raise ScenarioError(f"{file}: no such file; give the config of a training tool")
    try:
        values = _parsed(_text_of(file), file.suffix == ".json")
    except _RefusedError as refused:
        raise ScenarioError([refused.problem(file)]) from refused
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ScenarioError(f"{file}: given {shown(values)}; allowed: keys and values, as in key: value")
    return values


def key_lines(file: Path) -> dict[str, int]:
    """Return the line, from 1, of each key at the top of a YAML or JSON file; none of an unreadable one."""
    try:
        # Tabs, which JSON may have between its tokens, are none of YAML's.
        node = _compose(_text_of(file).expandtabs())
    except _RefusedError:
        return {}
    return {key.value: key.start_mark.line + 1 for key, _ in node.value if isinstance(key.value, str)}


def _parsed(text: str, is_json: bool) -> Any:
    try:
        return json.loads(text) if is_json else yaml.safe_load(text)
    except json.JSONDecodeError as error:
        raise _RefusedError(f"not valid JSON: {error.msg}", error.lineno) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        raise _RefusedError(f"not valid YAML: {error.problem or error.context}", line) from error
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise _RefusedError(f"not valid YAML or JSON: {type(error).__name__}") from error


def scenario_text(scenario: Scenario, remarks: Sequence[str] = ()) -> str:
    """Return a scenario as the text of a file that loads as the same one, below remarks as comments."""
    values = scenario.model_dump(mode="json", exclude_defaults=True)
    comments = "".join(f"# {' '.join(remark.split())}\n" for remark in remarks)
    return comments + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)


def scenario_folder() -> Path:
    """Return the folder of the shipped scenarios: in the package where installed, else in the checkout.

    Raises ScenarioError when there is neither.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "_scenarios", package.parent / "scenarios"):
        if folder.is_dir():
            return folder
    raise ScenarioError(
        f"no shipped scenarios in {package}; the installation is incomplete, install qbench again"
    )


def shipped_scenarios() -> tuple[Path, ...]:
    """Return the files of the shipped scenarios, sorted by name."""
    return tuple(sorted(scenario_folder().glob("*.yaml")))


def _with_absolute_paths(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    sections = {name: _absolute(values[name], folder) for (name,) in _SECTIONS if name in values}
    return values | sections


def _absolute(settings: Any, folder: Path) -> Any:
    """Return settings, or a list of them, with the paths in `model` and `data` made absolute."""
    if isinstance(settings, list):
        return [_absolute(entry, folder) for entry in settings]
    if not isinstance(settings, Mapping):
        return settings
    return {key: _absolute_value(resolve(key), value, folder) for key, value in settings.items()}


def _absolute_value(target: str | None, value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_absolute_value(target, entry, folder) for entry in value]
    if not isinstance(value, str):
        return value
    is_folder = target == "model" and (value in (".", "..") or value.startswith(("./", "../")))
    is_file = target == "data" and value not in ("", "random")
    if is_file:
        return _short(os.path.abspath(folder / value))
    return os.path.abspath(folder / value) if is_folder else value


def _short(path: str) -> str:
    """Return the path from the working folder where it lies in it: a record then names no one's home."""
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else relative


class _RefusedError(Exception):
    """The file cannot be read as a whole; `line` counts from 1."""

    def __init__(self, text: str, line: int | None = None) -> None:
        self.text = text
        self.line = line
        super().__init__(text)

    def problem(self, file: Path) -> Problem:
        """Return what is wrong with a file."""
        return Problem((), self.text, str(file), self.line)


@dataclass(slots=True)
class _Document:
    """One YAML file as plain values, with the line of each key and list item."""

    file: Path
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    num_nodes: int = 0

    def read(self) -> dict[str, Any]:
        """Return the values of the file; what is wrong with single keys is kept in `problems`.

        Raises ScenarioError when nothing can be read.
        """
        try:
            node = _compose(_text_of(self.file))
            if not isinstance(node, yaml.MappingNode):
                raise _RefusedError(
                    "not a scenario; begin with name: and question:", node.start_mark.line + 1
                )
            return self._mapping(node, ())
        except _RefusedError as refused:
            raise ScenarioError([refused.problem(self.file)]) from refused

    def located(self, problems: list[Problem]) -> list[Problem]:
        """Return these and the own problems with file and line, in the order of the file."""
        placed = [(problem.line or self._line(problem.path), problem) for problem in self.problems + problems]
        in_order = sorted(placed, key=lambda pair: pair[0])
        return [replace(problem, file=str(self.file), line=line) for line, problem in in_order]

    def _line(self, path: KeyPath) -> int:
        """Return the line of a key, or of the nearest key above it where it is missing."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def _value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.num_nodes += 1
        line = node.start_mark.line + 1
        if self.num_nodes > MAX_NODES:
            raise _RefusedError(
                f"more than {MAX_NODES:,} values with aliases written out; use no aliases", line
            )
        if len(path) > MAX_DEPTH:
            raise _RefusedError(f"nested more than {MAX_DEPTH} deep; a scenario needs five", line)
        self.lines.setdefault(path, line)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if node.tag not in _COLLECTION_TAGS:
            text = f"given the YAML tag !!{node.tag.removeprefix(_YAML)}"
            self.problems.append(Problem(path=path, text=text, allowed="no tag", line=line))
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._mapping(node, path)

    def _mapping(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else key_node.id
            if key_node.tag != _TEXT_TAG:
                text = f"given the key {shown(key)}"
                allowed = "text, in quotes where YAML reads something else"
                self.problems.append(Problem(path=path, text=text, allowed=allowed, line=line))
            elif key in values:
                text = f"given twice, first in line {self.lines[(*path, key)]}; keep one of the two"
                self.problems.append(Problem(path=(*path, key), text=text, line=line))
            else:
                self.lines[(*path, key)] = line
                values[key] = self._value(value_node, (*path, key))
        return values

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        if node.tag == f"{_YAML}timestamp":
            return node.value
        if node.tag in _SCALAR_TAGS:
            with contextlib.suppress(ValueError, LookupError, ArithmeticError):
                return yaml.constructor.SafeConstructor().construct_object(node)
        kind = node.tag.removeprefix(_YAML)
        text, allowed = f"given {shown(node.value)} as {kind}", "text, numbers, true, false, null"
        line = node.start_mark.line + 1
        self.problems.append(Problem(path=path, text=text, allowed=allowed, line=line))
        return node.value


def _text_of(file: Path) -> str:
    if file.is_dir():
        names = ", ".join(sorted(entry.name for entry in file.glob("*.yaml"))) or "no .yaml files"
        raise _RefusedError(f"a folder, not a scenario file; it holds {names}")
    try:
        with open_file(file) as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        known = ", ".join(shipped.stem for shipped in shipped_scenarios())
        raise _RefusedError(f"no such file; shipped scenarios are {known} in {scenario_folder()}") from None
    except OSError as error:
        raise _RefusedError(f"cannot be read: {error.strerror}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise _RefusedError(f"larger than {format_bytes(MAX_FILE_BYTES)}, the limit for a scenario file")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise _RefusedError(
            f"byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8", line
        ) from error


def _compose(text: str) -> yaml.Node:
    """Return the root node of the one document in a text."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise _RefusedError(
            f"not valid YAML: character U+{error.character:04X} is not allowed", line
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reasons = ", ".join(reason for reason in (error.context, error.problem) if reason)
        raise _RefusedError(f"not valid YAML: {reasons}", mark.line + 1 if mark else None) from error
    except (ValueError, OverflowError) as error:
        raise _RefusedError(f"not valid YAML: {error}") from error
    except RecursionError as error:
        raise _RefusedError("nested too deeply; a scenario needs five levels") from error
    if node is None:
        raise _RefusedError("empty; begin with name: and question:")
    return node
