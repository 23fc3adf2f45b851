"""The LoRA adapters of a point, made by peft."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

import regex
import torch
from peft import LoraConfig, get_peft_model
from transformers.pytorch_utils import Conv1D

from qbench.errors import StepError, first_line, nearest, shown
from qbench.scenario.schema import LoraSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


PATTERN_S = 2.0
"""For all names of a model; a pattern that means something takes milliseconds."""
_REPEATED_GROUP = re.compile(r"\)\s*[*+{]|(?:[*+}].*){6}", re.DOTALL)
"""Patterns that may backtrack without end: a repeated group, or more repetitions than a name has parts."""

_LINEAR = (torch.nn.Linear, Conv1D)
_ADAPTABLE = (*_LINEAR, torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
"""Layers that peft has a LoRA for (peft/tuners/lora/model.py, `_create_new_module`)."""


def linear_module_names(model: torch.nn.Module) -> list[str]:
    """Return the last name parts of all linear layers, sorted: what target_modules may name."""
    names = (name for name, module in model.named_modules() if isinstance(module, _LINEAR))
    return sorted({name.rsplit(".", 1)[-1] for name in names})


def add_adapters(model: PreTrainedModel, lora: LoraSettings, exclude: str | None = None) -> PeftModel:
    """Return the model with LoRA adapters; the base is frozen and adapters are fp32, as peft makes them.

    `exclude` is a pattern of modules that get none.

    Raises StepError when the target modules match nothing, or only partly.
    """
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,  # type: ignore[arg-type]  # peft divides by r: any number does
        lora_dropout=lora.lora_dropout,
        target_modules=_checked_targets(model, lora.target_modules),
        exclude_modules=exclude,
        use_dora=lora.use_dora,
        use_rslora=lora.use_rslora,
        modules_to_save=_checked_saved(model, lora.modules_to_save),
        task_type="SEQ_CLS" if hasattr(model, "score") else "CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            # peft warns that it sets fan_in_fan_out for Conv1D (GPT-2), which is what we want.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
            # all-linear makes patterns for stacked experts that some models have under another name.
            warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match")
            # A tied module that is trained is not tied any more, which matters where it is saved.
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
            return get_peft_model(model, config)
    except ValueError as error:
        hint = "; set lora_dropout: 0 (--lora-dropout 0)" if "lora_dropout" in str(error) else ""
        raise StepError(f"peft refuses these adapters: {first_line(error)}{hint}") from error


def _checked_targets(model: PreTrainedModel, given: str | tuple[str, ...]) -> str | list[str]:
    """Return the targets as peft takes them, each of which matches a layer.

    peft reads a single string as a regular expression over the whole module name; a plain name is taken as a
    list of one. Of a list it accepts that only one name matches; a misspelt one would silently adapt less.
    """
    if given == "all-linear":
        return given
    names = [name for name, module in model.named_modules() if isinstance(module, _ADAPTABLE)]
    if isinstance(given, str) and not _is_plain(given):
        every = [name for name, _ in model.named_modules()]
        matched = _matched(given, every)
        if not matched.isdisjoint(names):
            # peft matches with `re`, which may take for ever where groups are repeated.
            return (
                given if _REPEATED_GROUP.search(given) is None else "|".join(map(re.escape, sorted(matched)))
            )
    wanted = [given] if isinstance(given, str) else list(given)
    missing = [
        want for want in wanted if not any(name == want or name.endswith(f".{want}") for name in names)
    ]
    if missing:
        have = linear_module_names(model)
        near = nearest(missing[0], have)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise StepError(
            f"target_modules {', '.join(missing)} match no layer; the model has {', '.join(have)}{hint}"
        )
    return wanted


def _checked_saved(model: PreTrainedModel, names: tuple[str, ...]) -> list[str] | None:
    """Return the modules that peft copies and trains; it passes over a name that is not there."""
    have = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    for missing in (name for name in names if name.rsplit(".", 1)[-1] not in have):
        near = nearest(missing, sorted(have))
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise StepError(f"modules_to_save {missing} is not a module of the model{hint}")
    return list(names) or None


def _is_plain(text: str) -> bool:
    """Say whether a text is the name of a module and no pattern."""
    return re.fullmatch(r"[\w-]+", text) is not None


def _matched(pattern: str, names: Iterable[str]) -> set[str]:
    """Return the names that a pattern matches whole; none where it is no pattern.

    Raises StepError when that takes longer than PATTERN_S.
    """
    deadline = time.monotonic() + PATTERN_S
    try:
        compiled = regex.compile(pattern)
        return {
            name
            for name in names
            if compiled.fullmatch(name, timeout=max(deadline - time.monotonic(), 0.001)) is not None
        }
    except TimeoutError as error:
        raise StepError(
            f"target_modules {shown(pattern)}: no match within {PATTERN_S:g} s, because a repeated group can "
            "match in too many ways; name the modules"
        ) from error
    except (regex.error, OverflowError, RecursionError):
        return set()
