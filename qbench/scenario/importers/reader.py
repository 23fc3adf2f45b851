"""What all importers share: taking keys out of a foreign config, and what of it was not understood."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qbench.errors import shown
from qbench.scenario.importers.defaults import ADAPTED_BY_DEFAULT, OPTIMIZERS
from qbench.scenario.importers.keys import HARMLESS, LESS, MEMORY, MORE, Effect
from qbench.scenario.importers.values import (
    LIKE_VALUE,
    SWITCHES,
    dtype_name,
    misspelt,
    not_among,
    read_json,
    whole_number,
)
from qbench.scenario.settings import RIGHT_NAMES, SETTINGS

ModelConfigs = Callable[[str], Mapping[str, Any]]
"""Gives the config of a model's language part by the model's name; empty where it is not known."""

EVALUATION = ("do_eval", "eval_strategy", "evaluation_strategy", "per_device_eval_batch_size", "val_set_size")
"""Keys that have a model evaluated between steps of training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A foreign config as settings of a scenario."""

    format: str
    settings: dict[str, Any]
    """Nested settings, as `base` of a scenario."""
    caveats: tuple[str, ...]
    """Keys that affect memory and were not understood, unknown keys, and where the plan departs."""
    unmodelled: Mapping[str, Effect]
    """Keys that affect memory and are not in the plan, and whether the step needs more or less for them."""
    unknown: tuple[str, ...] = ()
    """Keys that ask for something and are not known here."""
    planned: tuple[str, ...] = ()
    """Keys whose values are in the plan."""


@dataclass(frozen=True, slots=True)
class Reader:
    """The keys of a foreign config; each one is taken, known to be harmless, or reported.

    A value that no training has is refused: it is in `refused`, and reading goes on with its default, so
    that all problems of a file are found.
    """

    values: Mapping[str, Any]
    config_of: ModelConfigs
    refused: dict[str, str] = field(default_factory=dict)
    """What is wrong, by key."""
    _taken: set[str] = field(default_factory=set)
    _told: list[str] = field(default_factory=list)
    _unmodelled: dict[str, Effect] = field(default_factory=dict)
    _doubted: dict[str, str] = field(default_factory=dict)

    def spelt_as(self, values: Mapping[str, Any]) -> Reader:
        """Return a reader of the same file in other words, with all that was taken, reported and refused."""
        return replace(self, values=values)

    def get(self, *names: str, default: Any = None) -> Any:
        """Return the value of the first of these keys that has one; all of them count as taken."""
        self._taken.update(names)
        return next((self.values[name] for name in names if self.values.get(name) is not None), default)

    def is_on(self, *names: str, default: bool = False) -> bool:
        """Return whether a switch is on; `auto` counts as on, as these tools take it on current cards."""
        return self._switch(self._named(names), self.get(*names), default)

    def _switch(self, key: str, value: Any, default: bool = False) -> bool:
        if value is None:
            return default
        is_on = SWITCHES.get(str(value).casefold())
        if is_on is None:
            self.refuse(key, not_among(("true", "false", "auto"), value))
        return default if is_on is None else is_on

    def whole(self, *names: str, of: str, default: int) -> int:
        """Return a whole number, also of text, which the setting `of` (its short name) must allow."""
        value = self.get(*names, default=default)
        number = whole_number(value)
        is_allowed = self._is_allowed(self._named(names), of, value if number is None else number)
        return number if is_allowed and number is not None else default

    def count(self, name: str, *, default: int) -> int:
        """Return a whole number, also of text, of a key that is named as the setting that must allow it."""
        return self.whole(name, of=name, default=default)

    def number(self, name: str, *, default: float) -> Any:
        """Return the value of a key that is named as the setting that must allow it."""
        value = self.get(name, default=default)
        return value if self._is_allowed(name, name, value) else default

    def _is_allowed(self, key: str, setting: str, value: Any) -> bool:
        problem = SETTINGS[setting].leaf.problem(value)
        if problem:
            self.refuse(key, problem.reason)
        return not problem

    def bits(self, name: str, allowed: Sequence[int]) -> int | None:
        """Return the bits of a weight, also of text; None for others than are allowed."""
        value = self.get(name)
        number = whole_number(value)
        if number in allowed:
            return number
        self.refuse(name, not_among([str(bits) for bits in allowed], value))
        return None

    def choice(self, *names: str, allowed: Sequence[str], default: str) -> str:
        """Return the one of the allowed names that is chosen."""
        value = self.get(*names, default=default)
        if value in allowed:
            return str(value)
        self.refuse(self._named(names), not_among(allowed, value))
        return default

    def length(self, *names: str, default: int) -> int:
        """Return the tokens of a sequence; a file that says that nothing is cut is refused."""
        null = next((name for name in names if name in self.values and self.values[name] is None), None)
        if null is not None and self.get(*names) is None:
            self.refuse(null, "null cuts no sequence, and the longest is not known here; give it with --seq")
        return self.whole(*names, of="seq_len", default=default)

    def _named(self, names: Sequence[str]) -> str:
        """Return the key by which the file names a value, else its usual one."""
        return next((name for name in names if self.values.get(name) is not None), names[0])

    def model(self, *names: str) -> str:
        """Return the name of the model; empty if there is none, which is refused."""
        value = self.get(*names)
        if isinstance(value, str) and value.strip():
            return value.strip()
        given = "not there" if value is None else f"given {shown(value)}"
        allowed = "a hub id or a folder with config.json, here or as TARGET beside --from"
        self.refuse(self._named(names), f"{given}; allowed: {allowed}")
        return ""

    def optimizer(self, *names: str, default: str = "adamw_torch_fused") -> str:
        """Return the optimizer by qbench's name; one that is not planned is reported and planned as AdamW."""
        value = str(self.get(*names, default=default))
        if value not in OPTIMIZERS:
            instead = "planned as AdamW, whose state may be larger"
            self.tell_unplanned(self._named(names), value, OPTIMIZERS, instead)
        return OPTIMIZERS.get(value, "adamw_torch")

    def attention(self, name: str, by_name: Mapping[str, str], default: str) -> str:
        """Return qbench's name of the attention that is chosen; one that is not planned becomes a caveat.

        `default`, also one of qbench's names, stands for it and for none that is chosen.
        """
        value = str(self.get(name, default=default)) or default
        if value not in by_name:
            instead = "what transformers would choose" if default == "auto" else default
            self.tell_unplanned(name, value, by_name, f"{instead} is")
        return by_name.get(value, default)

    def dtype(self, model: str, *names: str) -> str | None:
        """Return fp32, bf16 or fp16 as a dtype's name says, None where none is named.

        `auto` is the dtype of the checkpoint, as the model's config has it; where that is not known, bf16
        with a caveat.
        """
        value = self.get(*names)
        if value is None:
            return None
        if str(value) != "auto":
            named = dtype_name(value)
            if named is None:
                dtypes = ("auto", "bfloat16", "float16", "float32")
                self.refuse(self._named(names), not_among(dtypes, value))
            return named
        config = self._config(model)
        found = dtype_name(config.get("dtype") or config.get("torch_dtype"))
        if found is None:
            self.tell(
                f"{self._named(names)}: auto is the checkpoint's dtype, not known here; planned as bf16"
            )
        return found or "bf16"

    def modules(self, model: str, *names: str) -> str | list[str]:
        """Return target modules from a list, names with commas, a pattern, `all`, or, for nothing, peft's.

        What is no names is refused, and nothing where peft's choice for the model is not known.
        """
        value = self.get(*names, default=[])
        if isinstance(value, str) and set(value) & set("^$*+?()[]|\\"):
            return value.strip()  # peft reads one string as a pattern over whole names.
        modules = value.split(",") if isinstance(value, str) else value
        if not isinstance(modules, list) or not all(isinstance(it, str) and it.strip() for it in modules):
            self.refuse(self._named(names), f"given {shown(value)}; allowed: names of modules, or all-linear")
        elif modules:
            found = [name.strip() for name in modules]
            return "all-linear" if found in (["all-linear"], ["all"]) else found
        model_type = str(self.of_model(model, "model_type"))
        if model and model_type not in ADAPTED_BY_DEFAULT:
            # Of a value that was refused above, the reason stays.
            self.refuse(
                self._named(names),
                f"missing, and what peft adapts by default in {model} is not known; name the modules",
            )
        return list(ADAPTED_BY_DEFAULT.get(model_type, ()))

    def names(self, *names: str) -> list[str]:
        """Return names from a list or from text with commas; what is no names is refused."""
        value = self.get(*names, default=[])
        listed = value.split(",") if isinstance(value, str) else value
        if isinstance(listed, list) and all(isinstance(each, str) and each.strip() for each in listed):
            return [each.strip() for each in listed]
        self.refuse(self._named(names), f"given {shown(value)}; allowed: names of modules")
        return []

    def of_model(self, model: str, key: str) -> Any:
        """Return a value of a model's config, None where it is not known."""
        return self._config(model).get(key)

    def _config(self, model: str) -> Mapping[str, Any]:
        """Return the config of a model, empty where no model was named."""
        return self.config_of(model) if model else {}

    def nested(self, name: str) -> Mapping[str, Any]:
        """Return a nested mapping, also from JSON in text, as TrainingArguments takes it; empty for none."""
        value = self.get(name) or {}
        arguments = read_json(value) if isinstance(value, str) else value
        if isinstance(arguments, Mapping):
            return arguments
        self.refuse(name, f"given {shown(value)}; allowed: arguments by name")
        return {}

    def leave_out_others(self, name: str, values: Mapping[str, Any], known: Iterable[str]) -> None:
        """Add the keys of a nested mapping that are not planned."""
        for key in sorted(values.keys() - set(known)):
            self.leave_out(f"{name}.{key}", "either", "not understood, and it may affect memory")

    def checkpoint_impl(self, *, default: str = "auto") -> str:
        """Return the form of checkpointing that use_reentrant asks for; `default` where it says nothing."""
        name = "gradient_checkpointing_kwargs"
        arguments = self.nested(name)
        asked = arguments["use_reentrant"] if "use_reentrant" in arguments else self.get("use_reentrant")
        if asked is None:
            return default
        return "reentrant" if self._switch(f"{name}.use_reentrant", asked) else "no_reentrant"

    def refuse(self, key: str, text: str) -> None:
        """Add what is wrong with a key; the first reason is kept, as others may follow from it."""
        self.refused.setdefault(key, text)

    def has_refused(self, *names: str) -> bool:
        """Return whether one of these keys was refused, so that nothing can be said of what it goes with."""
        return any(name in self.refused for name in names)

    def leave_out(self, key: str, effect: Effect, caveat: str = "") -> None:
        """Add that what a key says is not in the plan, and whether the step needs more or less for it."""
        self._unmodelled[key] = effect
        if caveat:
            self.tell(f"{key}: {caveat}")

    def unmodelled(self) -> dict[str, Effect]:
        """Return the keys that affect memory and are not in the plan, with the effect of each."""
        left = {key: _effect(key) for key in self._left() if _is_among(key, MEMORY)}
        misspelt_keys: dict[str, Effect] = dict.fromkeys(self._misspelt_keys(), "either")
        return dict(sorted((left | misspelt_keys | self._unmodelled).items()))

    def imported(self, form: str, settings: dict[str, Any]) -> Imported:
        """Return what was made of the file, for the tool of this name."""
        unmodelled = self.unmodelled()
        left_out = {key.partition(".")[0] for key in unmodelled}
        planned = sorted(self._taken & self.values.keys() - left_out)
        return Imported(
            format=form,
            settings=settings,
            caveats=self.caveats(),
            unmodelled=unmodelled,
            unknown=tuple(self._unknown()),
            planned=tuple(key for key in planned if self.values[key] is not None),
        )

    def tell_unplanned(self, key: str, value: str, known: Iterable[str], instead: str) -> None:
        """Add that a value is not planned and what is instead of it, and the known one that may be meant."""
        self.leave_out(key, "either", f"{value} is not planned; {instead}")
        if meant := misspelt(value, known, LIKE_VALUE):
            self._doubted[key] = f"given {shown(value)}; did you mean {meant}?"

    def tell(self, caveat: str) -> None:
        """Add something that the reader of the plan should know."""
        self._told.append(caveat)

    def caveats(self) -> tuple[str, ...]:
        """Return all that was reported, then the keys that were not taken and may affect memory."""
        doubts = self.doubts()
        lists = (
            (
                "not understood, but they affect memory",
                [key for key in self._left() if _is_among(key, MEMORY)],
            ),
            ("unknown keys that may affect memory", [key for key in self._unknown() if key not in doubts]),
        )
        told = [*self._told, *(f"{key}: {text}" for key, text in doubts.items())]
        told += [f"{what}: {', '.join(keys)}" for what, keys in lists if keys]
        if any(_is_set(self.values.get(key)) for key in EVALUATION):
            told.append("evaluation is not planned; larger batches there may need more than a training step")
        return tuple(told)

    def _left(self) -> list[str]:
        """Return the keys that ask for something and were not taken, sorted."""
        return sorted(key for key, value in self.values.items() if key not in self._taken and _is_set(value))

    def _unknown(self) -> list[str]:
        return [key for key in self._left() if not _is_among(key, MEMORY) and not _is_among(key, HARMLESS)]

    def doubts(self) -> dict[str, str]:
        """Return by key which values and unknown keys may be misspelt, and what may be meant."""
        keys = {key: f"unknown key; did you mean {name}?" for key, name in self._misspelt_keys().items()}
        return self._doubted | keys

    def _misspelt_keys(self) -> dict[str, str]:
        """Return the key that may be meant by each unknown one; names of other tools count, too."""
        absent = sorted(self._taken - self.values.keys())
        words = {word for name in self._taken for word in name.split("_")}
        # What has known words only is another key: use_lora is not misspelt for use_rslora, nor is
        # gradient_checkpointing for disable_gradient_checkpointing.
        suspects = [key for key in self._unknown() if not words.issuperset(key.split("_"))]
        meant = {key: misspelt(key, absent) or self._elsewhere(key) for key in suspects}
        return {key: name for key, name in meant.items() if name}

    def _elsewhere(self, key: str) -> str | None:
        """Return this tool's key of a setting that has the name `key` in another tool."""
        setting = RIGHT_NAMES.get(key.casefold(), "")
        return next((name for name in sorted(self._taken) if RIGHT_NAMES.get(name, name) == setting), None)


def _effect(key: str) -> Effect:
    return "more" if _is_among(key, MORE) else "less" if _is_among(key, LESS) else "either"


def _is_set(value: Any) -> bool:
    """Return whether a value asks for something: null, false, 0, none and empty ones do not."""
    return bool(value) and str(value).casefold() not in ("none", "no", "false", "off", "disabled")


def _is_among(key: str, names: Iterable[str]) -> bool:
    """Return whether a key is one of the names; a name that ends in * stands for all that begin so."""
    return any(key.startswith(name[:-1]) if name.endswith("*") else key == name for name in names)
