"""What each of many configs is, and which of its keys a plan takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qbench.errors import Problem, ScenarioError
from qbench.scenario.importers.configs import import_config, tool_of
from qbench.scenario.importers.reader import ModelConfigs
from qbench.scenario.load import load_mapping

SUFFIXES = (".yaml", ".yml", ".json")
"""Ends of names that configs have in a folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """One config file. A refused one has problems and no lists of keys."""

    path: Path
    tool: str = ""
    """Format, or the name of a tool that is not read; empty where the keys show none."""
    model: str = ""
    method: str = ""
    """lora, qlora or full."""
    planned: tuple[str, ...] = ()
    no_effect: tuple[str, ...] = ()
    """Keys that do not move the memory of a step, as they are set."""
    unmodelled: tuple[str, ...] = ()
    """Keys that affect memory and are not in a plan."""
    unknown: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def is_read(self) -> bool:
        """Whether a plan can be made of it."""
        return not self.problems


def config_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the files among paths, and of folders all that may be configs, in order of their names."""
    for path in paths:
        if path.is_dir():
            yield from sorted(each for each in path.rglob("*") if each.suffix in SUFFIXES and each.is_file())
        else:
            yield path


def survey(file: Path, config_of: ModelConfigs, form: str = "") -> Surveyed:
    """Return what a config is, without planning it; `config_of` and `form` are those of `import_config`."""
    try:
        values = load_mapping(file)
    except ScenarioError as error:
        return Surveyed(path=file, problems=error.problems)
    model = next(
        (
            str(values[key])
            for key in ("base_model", "model_name_or_path", "model")
            if isinstance(values.get(key), str)
        ),
        "",
    )
    try:
        found = import_config(file, config_of, form)
    except ScenarioError as error:
        return Surveyed(path=file, tool=tool_of(values), model=model, problems=error.problems)
    named = {*found.planned, *found.unmodelled, *found.unknown}
    within = {key.partition(".")[0] for key in named}
    quantized = found.settings["precision"] not in ("fp32", "bf16", "fp16")
    return Surveyed(
        path=file,
        tool=found.format,
        model=model or str(found.settings["model"]),
        method="full" if found.settings["lora"] is None else "qlora" if quantized else "lora",
        planned=found.planned,
        no_effect=tuple(sorted(key for key in values if key not in within)),
        unmodelled=tuple(found.unmodelled),
        unknown=found.unknown,
    )
