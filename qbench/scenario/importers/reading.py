"""What all importers share: taking keys out of a foreign config, and what of it was not understood."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qbench.errors import ScenarioError
from qbench.scenario.importers.keys import HARMLESS, MEMORY

ModelConfigs = Callable[[str], Mapping[str, Any]]
"""Gives the config of a model's language part by the model's name; empty where it is not known."""

REENTRANT = (
    "re-entrant checkpointing keeps other tensors than the form that is planned (use_reentrant: false)"
)

ADAPTED_BY_DEFAULT = {
    "bloom": ("query_key_value",),
    "falcon": ("query_key_value",),
    "gemma": ("q_proj", "v_proj"),
    "gemma2": ("q_proj", "v_proj"),
    "gemma3_text": ("q_proj", "v_proj"),
    "gpt2": ("c_attn",),
    "gpt_neox": ("query_key_value",),
    "gptj": ("q_proj", "v_proj"),
    "llama": ("q_proj", "v_proj"),
    "mistral": ("q_proj", "v_proj"),
    "mixtral": ("q_proj", "v_proj"),
    "opt": ("q_proj", "v_proj"),
    "phi": ("q_proj", "v_proj", "fc1", "fc2"),
    "qwen2": ("q_proj", "v_proj"),
    "qwen3": ("q_proj", "v_proj"),
}
"""Modules that peft adapts where none are named, by model type.

Source: peft/utils/constants.py, TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING; a test compares them.
"""

OPTIMIZERS = {
    "adamw_torch": "adamw_torch",
    "adamw_torch_fused": "adamw_torch",
    "adamw_hf": "adamw_torch",
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "paged_adamw_32bit": "paged_adamw_32bit",
    "paged_adamw": "paged_adamw_32bit",
    "sgd": "sgd",
}
"""Names of optimizers in transformers.OptimizerNames that keep the same state as one that is planned."""


EVALUATION = ("do_eval", "eval_strategy", "evaluation_strategy", "per_device_eval_batch_size", "val_set_size")
"""Keys that have a model evaluated between steps of training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A foreign config as settings of a scenario."""

    format: str
    settings: dict[str, Any]
    """Nested settings, as `base` of a scenario."""
    caveats: tuple[str, ...]
    """Keys that move memory and were not understood, unknown keys, and where the plan departs."""


class Reader:
    """The keys of a foreign config; each one is taken, known to be harmless, or told."""

    def __init__(self, values: Mapping[str, Any], config_of: ModelConfigs) -> None:
        self._values = values
        self._config_of = config_of
        self._taken: set[str] = set()
        self._told: list[str] = []

    def get(self, *names: str, default: Any = None) -> Any:
        """Return the value of the first of these keys that has one; all of them count as taken."""
        self._taken.update(names)
        return next((self._values[name] for name in names if self._values.get(name) is not None), default)

    def is_on(self, *names: str, default: bool = False) -> bool:
        """Return whether a switch is on; `auto` counts as on, as these tools take it on current cards.

        Raises ScenarioError for anything else than a switch.
        """
        return _switch(self._named(names), self.get(*names, default=default))

    def whole(self, *names: str, default: int) -> int:
        """Return a whole number of at least 1, also of text. Raises ScenarioError for anything else."""
        value = self.get(*names, default=default)
        number = whole_number(value)
        if number is None or number < 1:
            raise ScenarioError(
                f"{self._named(names)}: given {value!r}; allowed: a whole number of at least 1"
            )
        return number

    def length(self, *names: str, default: int) -> int:
        """Return the tokens of a sequence. Raises ScenarioError where the file says that nothing is cut."""
        null = next((name for name in names if name in self._values and self._values[name] is None), None)
        if null is not None and self.get(*names) is None:
            raise ScenarioError(
                f"{null}: null cuts no sequence, and the longest is not known here; give it with --seq"
            )
        return self.whole(*names, default=default)

    def _named(self, names: Sequence[str]) -> str:
        """Return the key by which the file names a value, else its usual one."""
        return next((name for name in names if self._values.get(name) is not None), names[0])

    def model(self, *names: str) -> str:
        """Return the name of the model. Raises ScenarioError where there is none."""
        value = self.get(*names)
        if not isinstance(value, str) or not value.strip():
            given = f"given {value!r}" if self._values.get(self._named(names)) is not None else "not there"
            raise ScenarioError(
                f"{self._named(names)}: {given}; allowed: a hub id or a folder with config.json, here or as "
                "TARGET beside --from"
            )
        return value.strip()

    def optimizer(self, *names: str, default: str = "adamw_torch") -> str:
        """Return the optimizer by qbench's name; one that is not planned is told and stands as AdamW."""
        value = self.get(*names, default=default)
        known = OPTIMIZERS.get(str(value))
        if known is None:
            name = self._named(names)
            self.tell(f"{name}: {value} is not planned; AdamW stands for it, whose state may be larger")
        return known or "adamw_torch"

    def dtype(self, model: str, *names: str) -> str | None:
        """Return fp32, bf16 or fp16 as a dtype's name says, None where none is named.

        `auto` is the dtype of the checkpoint, as the model's config has it; bf16, and told, where it is not
        known. Raises ScenarioError for what names no dtype that a base is loaded in.
        """
        value = self.get(*names)
        if value is None:
            return None
        if str(value) != "auto":
            named = dtype_name(value)
            if named is None:
                raise ScenarioError(
                    f"{self._named(names)}: given {value!r}; allowed: auto, bfloat16, float16 or float32"
                )
            return named
        config = self._config_of(model)
        found = dtype_name(config.get("dtype") or config.get("torch_dtype"))
        if found is None:
            self.tell(
                f"{self._named(names)}: auto is the checkpoint's dtype, not known here; planned as bf16"
            )
        return found or "bf16"

    def modules(self, model: str, *names: str) -> str | list[str]:
        """Return target modules from a list, names with commas, `all`, or, for nothing, peft's own choice.

        Raises ScenarioError for what is no names, and for nothing where peft's choice for the model is not
        known.
        """
        value = self.get(*names, default=[])
        modules = value.split(",") if isinstance(value, str) else value
        if not isinstance(modules, list) or not all(isinstance(it, str) and it.strip() for it in modules):
            raise ScenarioError(
                f"{self._named(names)}: given {value!r}; allowed: names of modules, or all-linear"
            )
        if modules:
            found = [name.strip() for name in modules]
            return "all-linear" if found in (["all-linear"], ["all"]) else found
        model_type = self._config_of(model).get("model_type")
        if model_type not in ADAPTED_BY_DEFAULT:
            raise ScenarioError(
                f"{names[0]}: missing, and what peft adapts by default in {model} is not known; "
                "name the modules"
            )
        return list(ADAPTED_BY_DEFAULT[model_type])

    def tell_if_reentrant(self) -> None:
        """Add a caveat where the arguments of checkpointing ask for its re-entrant form.

        They may be JSON in text, as TrainingArguments takes them. Raises ScenarioError for what is none.
        """
        name = "gradient_checkpointing_kwargs"
        value = self.get(name) or {}
        arguments = _read_json(value) if isinstance(value, str) else value
        if not isinstance(arguments, Mapping):
            raise ScenarioError(f"{name}: given {value!r}; allowed: arguments by name")
        asked = _switch(f"{name}.use_reentrant", arguments.get("use_reentrant") or False)
        if self.is_on("use_reentrant") or asked:
            self.tell(f"use_reentrant: {REENTRANT}")

    def tell(self, caveat: str) -> None:
        """Add something that the reader of the plan should know."""
        self._told.append(caveat)

    def caveats(self) -> tuple[str, ...]:
        """Return all that was told, then the keys that were not taken and may move memory."""
        left = {
            key: value for key, value in self._values.items() if key not in self._taken and _is_set(value)
        }
        moving = sorted(key for key in left if _is_among(key, MEMORY))
        unknown = sorted(key for key in left if not _is_among(key, MEMORY) and not _is_among(key, HARMLESS))
        lists = (
            ("not understood, and they move memory", moving),
            ("unknown here, and they may move memory", unknown),
        )
        told = [*self._told, *(f"{what}: {', '.join(keys)}" for what, keys in lists if keys)]
        if any(_is_set(self._values.get(key)) for key in EVALUATION):
            told.append("evaluation is not planned; larger batches there may need more than a training step")
        return tuple(told)


def whole_number(value: Any) -> int | None:
    """Return the number that a value is, or that its text is; None for what is no whole number."""
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\s*[0-9]{1,15}\s*", value) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
        return None
    return int(value)


def _switch(name: str, value: Any) -> bool:
    text = str(value).casefold()
    if text in ("true", "yes", "auto", "1"):
        return True
    if text in ("false", "no", "0", ""):
        return False
    raise ScenarioError(f"{name}: given {value!r}; allowed: true, false or auto")


def _read_json(text: str) -> Any:
    """Return the value of JSON text, None where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _is_set(value: Any) -> bool:
    """Return whether a value asks for something: null, false, 0, none and empty ones do not."""
    return bool(value) and str(value).casefold() not in ("none", "no", "false", "off", "disabled")


def _is_among(key: str, names: Iterable[str]) -> bool:
    """Return whether a key is one of the names; a name that ends in * stands for all that begin so."""
    return any(key.startswith(name[:-1]) if name.endswith("*") else key == name for name in names)


def dtype_name(value: Any) -> str | None:
    """Return fp32, bf16 or fp16 for a dtype as torch spells it; None for auto and nothing."""
    names = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "fp32": "fp32"}
    names |= {"bf16": "bf16", "fp16": "fp16"}
    return names.get(str(value).removeprefix("torch."))
