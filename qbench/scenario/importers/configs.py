"""Configs of other training tools as scenarios: which tool a file is for, and one point out of it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qbench.errors import Problem, ScenarioError, nearest
from qbench.scenario.expand import point_from
from qbench.scenario.importers.axolotl import from_axolotl
from qbench.scenario.importers.llama_factory import from_llama_factory
from qbench.scenario.importers.ms_swift import from_ms_swift
from qbench.scenario.importers.reader import Imported, ModelConfigs, Reader
from qbench.scenario.importers.trainer import OF_SCRIPTS, from_trainer
from qbench.scenario.importers.trl import from_trl
from qbench.scenario.importers.values import misspelt
from qbench.scenario.importers.zero import with_engine_config
from qbench.scenario.load import key_lines, load_mapping
from qbench.scenario.schema import PlanSettings, Point, Scenario
from qbench.scenario.settings import flatten

FORMATS: dict[str, Callable[[Reader], dict[str, Any]]] = {
    "axolotl": from_axolotl,
    "llama-factory": from_llama_factory,
    "ms-swift": from_ms_swift,
    "trl": from_trl,
    "trainer": from_trainer,
}
"""Importers by the name of their format."""

FEWEST_GPUS = 2
"""Which a file that shards is checked with: none says how many there are."""

_KEYS = {
    "axolotl": ("base_model", "sequence_len"),
    "llama-factory": ("model_name_or_path", "cutoff_len"),
    "ms-swift": ("model", "max_length"),
    "trl": ("model_name_or_path", "max_length"),
    "trainer": ("model_name_or_path", "max_length"),
}
"""How each format names the model, and the longest sequence."""

_AXOLOTL_UNNAMED = {"sequence_len", "micro_batch_size"}
"""Keys that tell axolotl where its key of the model is misspelt; files of other tools may have them, too."""

_MARKS = (
    ("axolotl", {"base_model"}),
    ("trainer", OF_SCRIPTS),
    ("axolotl", _AXOLOTL_UNNAMED),
    (
        "llama-factory",
        {
            "finetuning_type",
            "cutoff_len",
            "lora_target",
            "lora_rank",
            "quantization_bit",
            "stage",
            "template",
            "dataset_dir",
            "pure_bf16",
            "enable_liger_kernel",
        },
    ),
    (
        "trl",
        {
            "use_peft",
            "use_peft_lora",
            "max_length",
            "max_seq_length",
            "packing",
            "dataset_mixture",
            "load_in_4bit",
            "lora_r",
            "model_init_kwargs",
            "reward_funcs",
            "num_generations",
            "max_prompt_length",
        },
    ),
    ("trainer", {"block_size", "train_file", "do_train", "per_device_train_batch_size"}),
)
"""Keys that tell a format, asked in this order; of _NEIGHBOURS the one that has more of its keys."""

_NEIGHBOURS = ("llama-factory", "trl")
"""Formats that scripts of others borrow keys from, so that one key alone tells nothing."""

_MS_SWIFT = {"tuner_type", "train_type", "tuner_backend", "quant_bits", "lora_rank", "rlhf_type"}
"""Keys that ms-swift has beside model."""

_OTHERS = (
    ("AutoTrain", {"base_model", "task"}, {"params", "backend", "project_name"}),
    ("LLaMA-Factory v1", {"model"}, {"model_class", "peft_config", "quant_config", "train_dataset"}),
    ("peft (adapter_config.json)", {"peft_type"}, {"base_model_name_or_path", "target_modules"}),
    ("LitGPT", {"checkpoint_dir"}, {"lora_r", "quantize", "precision"}),
)
"""Tools whose files are not read, by the keys that all of them have, and of which they have at least one."""

_SCRIPT = (
    "a Python script or notebook cannot be read; write what its SFTConfig or TrainingArguments says as "
    "key: value in a YAML file, with model_name_or_path, and of its LoraConfig use_peft: true, lora_r, "
    "lora_alpha, lora_target_modules, for QLoRA load_in_4bit: true; or put QbenchCallback (qbench.callback) "
    "into it, which plans the same training"
)


def import_config(
    file: Path, config_of: ModelConfigs, form: str = "", model: str = "", seq_len: int | None = None
) -> Imported:
    """Return the settings of a training tool's config file; `form` names the tool, else its keys tell.

    `config_of` is asked where peft's choice of modules or the dtype depends on the model. `model` stands in
    for the one that the file names, as for a mirror of a catalog model or a local copy, and `seq_len` for its
    longest sequence.

    Raises ScenarioError where the file cannot be read, belongs to no tool known here, or makes no step: with
    all problems of its keys, each with its line.
    """
    if file.suffix in (".py", ".ipynb") and file.exists():
        raise ScenarioError(f"{file}: {_SCRIPT}")
    values = load_mapping(file)
    if not form and (tool := other_tool(values)):
        raise ScenarioError(
            f"{file}: a config of {tool}, which is not read; allowed: {', '.join(FORMATS)}. Give the model "
            "and its settings as flags instead: qbench plan MODEL --precision nf4-dq --r 16 --seq 2048"
        )
    form = form or _format_of(file, values)
    if form not in FORMATS:
        close = nearest(form, FORMATS, count=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ScenarioError(f"--from-format: given {form!r}; {hint}allowed: {', '.join(FORMATS)}")
    instead = zip(_KEYS[form], (model or None, seq_len), strict=True)
    replaced = {key: value for key, value in instead if value is not None}
    reader = Reader({**with_engine_config(values, file), **replaced}, config_of)
    settings = FORMATS[form](reader)
    lines = {key: line for key, line in key_lines(file).items() if key not in replaced}
    if reader.refused:
        raise ScenarioError(_located(file, lines, reader.doubts() | reader.refused))
    settings["model"] = _model(settings["model"])
    try:
        point_from(settings, {} if "distributed" not in settings else {"gpus": FEWEST_GPUS})
    except ScenarioError as error:
        doubts = _located(file, lines, reader.doubts())
        raise ScenarioError(
            [*doubts, *(replace(problem, file=str(file)) for problem in error.problems)]
        ) from error
    return reader.imported(form, settings)


def _located(file: Path, lines: Mapping[str, int], problems: Mapping[str, str]) -> list[Problem]:
    """Return problems by key with file and, where the file has the key, its line, in that order."""
    placed = sorted((lines.get(key.partition(".")[0], 0), key, text) for key, text in problems.items())
    return [Problem(path=(key,), text=text, file=str(file), line=line or None) for line, key, text in placed]


def other_tool(values: Mapping[str, Any]) -> str:
    """Return the name of the tool whose config this is where it is one that is not read; else empty."""
    if any(isinstance(value, Mapping) and "_component_" in value for value in values.values()):
        return "torchtune"
    return next(
        (name for name, all_of, one_of in _OTHERS if all_of <= values.keys() and one_of & values.keys()), ""
    )


def tool_of(values: Mapping[str, Any]) -> str:
    """Return the format that the keys of a config show, the name of a tool that is not read, or nothing."""
    return other_tool(values) or _shown_by(values)


def _shown_by(values: Mapping[str, Any]) -> str:
    named_by_others = {"model_name_or_path", "model_name"} & values.keys()
    keys = values.keys() - _AXOLOTL_UNNAMED if named_by_others else values.keys()
    if "model" in keys and _MS_SWIFT & keys:
        return "ms-swift"
    shown = [(form, len(marks & keys)) for form, marks in _MARKS if marks & keys]
    if not shown or shown[0][0] not in _NEIGHBOURS:
        return shown[0][0] if shown else ""
    # Of equally many the first.
    return max((each for each in shown if each[0] in _NEIGHBOURS), key=lambda each: each[1])[0]


def _format_of(file: Path, values: Mapping[str, Any]) -> str:
    if form := _shown_by(values):
        return form
    known = sorted({mark for _, marks in _MARKS for mark in marks})
    meant = {key: misspelt(key, known) for key in values}
    hints = "".join(f"; {key}: did you mean {mark}?" for key, mark in meant.items() if mark)
    raise ScenarioError(
        f"{file}: its keys do not show which tool it is for; name it with --from-format "
        f"({', '.join(FORMATS)}){hints}"
    )


def _model(name: str) -> str:
    """Return a model's name, as an absolute path where it is a path, so that it can be saved."""
    return os.path.abspath(name) if name.startswith((".", "/")) else name


def scenario_of(file: Path, points: Sequence[Point], gpus: Sequence[str]) -> Scenario:
    """Return a scenario of these points, named after the file that they come from."""
    first = flatten(points[0].model_dump(mode="json"))
    others = [flatten(point.model_dump(mode="json")) for point in points[1:]]
    include = [
        {path: value for path, value in other.items() if path not in first or value != first[path]}
        for other in others
    ]
    return Scenario(
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip("-._") or "imported",
        question=f"What does the training step of {file.name} need?",
        base=points[0].model_dump(mode="json"),
        include=include,
        plan=PlanSettings(gpus=tuple(gpus)),
    )
