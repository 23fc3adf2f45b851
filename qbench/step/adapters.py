"""The LoRA adapters of a point, made by peft."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, get_peft_model

from qbench.errors import StepError, nearest
from qbench.scenario.schema import LoraSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def linear_module_names(model: torch.nn.Module) -> list[str]:
    """Return the last name parts of all linear layers, sorted: what target_modules may name."""
    kinds = ("Linear", "Linear4bit", "Linear8bitLt", "Conv1D")
    names = {
        name.rsplit(".", 1)[-1] for name, module in model.named_modules() if type(module).__name__ in kinds
    }
    return sorted(names)


def add_adapters(model: PreTrainedModel, lora: LoraSettings) -> PeftModel:
    """Return the model with LoRA adapters; the base is frozen and adapters are fp32, as peft makes them.

    Raises StepError when the target modules match nothing, or only partly.
    """
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    _check_targets(model, targets)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,  # type: ignore[arg-type]  # peft divides by r: any number does
        lora_dropout=lora.lora_dropout,
        target_modules=targets,
        use_dora=lora.use_dora,
        use_rslora=lora.use_rslora,
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            # peft warns that it sets fan_in_fan_out for Conv1D (GPT-2), which is what we want.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
            return get_peft_model(model, config)
    except ValueError as error:
        raise StepError(f"peft refuses these adapters: {str(error).splitlines()[0]}") from error


def _check_targets(model: PreTrainedModel, targets: str | list[str]) -> None:
    """peft accepts a list of which only one name matches; a misspelt name would silently adapt less."""
    if targets == "all-linear":
        return
    wanted = [targets] if isinstance(targets, str) else targets
    names = [name for name, _ in model.named_modules()]
    missing = [
        want for want in wanted if not any(name == want or name.endswith(f".{want}") for name in names)
    ]
    if isinstance(targets, str) and missing:
        # peft reads a single string as a regular expression over the whole module name.
        missing = [] if any(re.fullmatch(targets, name) for name in names) else missing
    if missing:
        have = linear_module_names(model)
        near = nearest(missing[0], have)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise StepError(
            f"target_modules {', '.join(missing)} match nothing; the model has {', '.join(have)}{hint}"
        )
