"""The point that describes a training which somebody else set up, and what of it a point cannot say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch

from qbench.catalog.models import find_model
from qbench.errors import CatalogError
from qbench.scenario.recipes import Optimizer
from qbench.scenario.schema import LoraSettings, Point, Precision, TrainSettings
from qbench.step.dtypes import DTYPES
from qbench.step.quantize import is_quantized_weight

_OPTIMIZERS = {
    **{name: name for name in get_args(Optimizer)},
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
}
"""`TrainingArguments.optim` -> the optimizer of a point."""

_MOVES_MEMORY: dict[str, Any] = {
    "label_smoothing_factor": 0.0,
    "neftune_noise_alpha": None,
    "torch_compile": False,
    "use_liger_kernel": False,
    "torch_empty_cache_steps": None,
    "deepspeed": None,
    "padding_free": False,
    "activation_offloading": False,
}
"""Settings of the arguments that affect memory and that no point has, with the value that leaves it alone."""

_LORA_EXTRAS: dict[str, Any] = {
    "bias": "none",
    "modules_to_save": None,
    "rank_pattern": {},
    "layers_to_transform": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "init_lora_weights": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What a training does, in the words of a scenario."""

    point: Point
    unmapped: tuple[str, ...]
    """Settings that affect memory or speed and are not in the point, so that its plan does not know them."""


def observed_point(
    model: Any, arguments: Any, shape: tuple[int, int], folder: Path, world_size: int = 1
) -> Observed:
    """Return the point of a model under TrainingArguments, for batches of `shape` [sequences, tokens].

    `folder` takes the model's config where its name is not one of the catalog, and no folder that holds it.
    """
    unmapped: list[str] = []
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    point = Point(
        model=_model_name(base.config, folder),
        weights="pretrained" if getattr(base.config, "_name_or_path", "") else "random",
        precision=_precision(base, unmapped),
        lora=_lora(model, unmapped),
        train=_train(base, arguments, shape, unmapped),
    )
    unmapped += _preparation(base, point)
    unmapped += _other_settings(arguments)
    devices = {parameter.device for parameter in base.parameters()}
    if len(devices) > 1:
        unmapped.append(f"the model spans {len(devices)} devices; only the first was measured")
    if world_size > 1:
        unmapped.append(f"{world_size} processes trained together; this record describes one of them")
    return Observed(point=point, unmapped=tuple(unmapped))


def _model_name(config: Any, folder: Path) -> str:
    """Return a name under which a plan finds the config again."""
    name = str(getattr(config, "_name_or_path", "") or "")
    if name and (Path(name) / "config.json").is_file():
        return name
    try:
        return find_model(name).hub_id
    except CatalogError:
        kept = folder / "model" / (name.replace("/", "--") or config.model_type)
        config.save_pretrained(kept)
        return str(kept)


def _precision(base: Any, unmapped: list[str]) -> Precision:
    settings = getattr(base.config, "quantization_config", None)
    quantized = any(is_quantized_weight(parameter) for parameter in base.parameters())
    if not quantized:
        return _float_precision(base, unmapped)
    facts = settings if isinstance(settings, dict) else getattr(settings, "to_dict", dict)()
    if facts.get("load_in_8bit"):
        return "int8"
    state = next(p.quant_state for p in base.parameters() if getattr(p, "quant_state", None) is not None)
    compute = str(facts.get("bnb_4bit_compute_dtype", "bfloat16")).removeprefix("torch.")
    if compute != "bfloat16":
        unmapped.append(f"bnb_4bit_compute_dtype {compute}; a point has bfloat16")
    return cast(Precision, f"{state.quant_type}{'-dq' if state.nested else ''}")


def _float_precision(base: Any, unmapped: list[str]) -> Precision:
    """Return the dtype that most weights have, adapters left out."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    sizes: Counter[torch.dtype] = Counter()
    for name, parameter in base.named_parameters():
        if "lora_" not in name:
            sizes[parameter.dtype] += parameter.numel()
    dtype, count = sizes.most_common(1)[0]
    if count < sizes.total():
        unmapped.append(f"{100 * (1 - count / sizes.total()):.1f} % of the base weights are not {dtype}")
    if dtype not in names:
        unmapped.append(f"weights of {dtype}; the point says bf16")
    return cast(Precision, names.get(dtype, "bf16"))


def _lora(model: Any, unmapped: list[str]) -> LoraSettings | None:
    configs = getattr(model, "peft_config", None)
    if not configs:
        return None
    active = getattr(model, "active_adapter", None)
    config = configs.get(active) or next(iter(configs.values()))
    if len(configs) > 1:
        unmapped.append(f"{len(configs)} adapters are loaded; the point has {active}")
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        unmapped.append(f"adapter {kind}; the point has a LoRA of its rank")
    for name, neutral in _LORA_EXTRAS.items():
        value = getattr(config, name, neutral)
        if value not in (neutral, None, {}, []):
            unmapped.append(f"LoraConfig.{name} {value}")
    targets = getattr(config, "target_modules", "all-linear")
    return LoraSettings(
        r=getattr(config, "r", LoraSettings().r),
        lora_alpha=getattr(config, "lora_alpha", LoraSettings().lora_alpha),
        lora_dropout=getattr(config, "lora_dropout", 0.0),
        target_modules=targets if isinstance(targets, str) else tuple(sorted(targets)),
        use_dora=getattr(config, "use_dora", False),
        use_rslora=getattr(config, "use_rslora", False),
    )


def _train(base: Any, arguments: Any, shape: tuple[int, int], unmapped: list[str]) -> TrainSettings:
    sequences, tokens = shape
    attention: Any = getattr(base.config, "_attn_implementation", None) or "auto"
    if attention not in ("eager", "sdpa", "flash_attention_2"):
        unmapped.append(f"attn_implementation {attention}")
        attention = "auto"
    autocast = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "none"
    return TrainSettings(
        per_device_train_batch_size=sequences,
        seq_len=tokens,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        gradient_checkpointing=_checkpointing(base, arguments, unmapped),
        optim=cast(Optimizer, _optimizer(arguments, unmapped)),
        attn_implementation=attention,
        autocast=cast(Any, autocast),
        recipe="trl" if type(arguments).__module__.startswith("trl.") else "trainer",
    )


def _optimizer(arguments: Any, unmapped: list[str]) -> str:
    name = str(getattr(arguments.optim, "value", arguments.optim))
    known = _OPTIMIZERS.get(name)
    if known is None:
        known = "adamw_torch"
        unmapped.append(f"optim {name}; the point has {known}")
    return known


def _checkpointing(base: Any, arguments: Any, unmapped: list[str]) -> bool:
    on = any(getattr(module, "gradient_checkpointing", False) for module in base.modules())
    settings = getattr(arguments, "gradient_checkpointing_kwargs", None) or {}
    if on and settings.get("use_reentrant"):
        unmapped.append("use_reentrant=True is not modelled; the plan assumes the non-reentrant form")
    return on


def _preparation(base: Any, point: Point) -> Iterator[str]:
    """Say where the base is not prepared as the recipe would have done it."""
    if point.method != "qlora":
        return
    left = [p for n, p in base.named_parameters() if "lora_" not in n and not is_quantized_weight(p)]
    upcast = all(parameter.dtype == torch.float32 for parameter in left)
    if upcast != (point.train.recipe == "trainer"):
        state = "in fp32" if upcast else "not in fp32"
        yield (
            f"unquantized weights are {state}, unlike recipe {point.train.recipe} "
            "(peft's prepare_model_for_kbit_training)"
        )


def _other_settings(arguments: Any) -> Iterator[str]:
    for name, neutral in _MOVES_MEMORY.items():
        value = getattr(arguments, name, neutral)
        if value not in (neutral, None, False, 0):
            yield f"{name} {value}"
    if getattr(arguments, "fsdp", None):
        yield "fsdp shards the model"
    if getattr(arguments, "packing", False):
        yield "packing: the point has full sequences of one length"
