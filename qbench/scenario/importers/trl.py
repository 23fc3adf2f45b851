"""Argument files of TRL's SFT script and of scripts around transformers' Trainer as settings of a scenario.

Source: trl/trainer/{sft_config,model_config}.py and transformers/training_args.py, for names and defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qbench.scenario.importers.reading import Imported, ModelTypes, Reader, dtype_name

_DTYPE = "dtype is not said: base weights are planned in {dtype}"


def from_trl(values: Mapping[str, Any], model_type_of: ModelTypes) -> Imported:
    """Return the settings of a TRL config. Raises ScenarioError for values that no training has."""
    reader = Reader(values, model_type_of)
    fp16 = reader.is_on("fp16")
    autocast = "bf16" if reader.is_on("bf16", default=not fp16) else "fp16" if fp16 else "none"
    batch = _train(reader, checkpointing=True) | {
        "seq_len": reader.whole("max_length", "max_seq_length", default=1024),
        "autocast": autocast,
        "recipe": "trl",
    }
    if not reader.is_on("packing"):
        reader.tell("packing is off: batches are as long as their longest sequence; planned as full ones")
    return Imported(format="trl", settings=_settings(reader, batch, "fp32"), caveats=reader.caveats())


def from_trainer(values: Mapping[str, Any], model_type_of: ModelTypes) -> Imported:
    """Return the settings of a Trainer file. Raises ScenarioError for values that no training has."""
    reader = Reader(values, model_type_of)
    autocast = "bf16" if reader.is_on("bf16") else "fp16" if reader.is_on("fp16") else "none"
    batch = _train(reader, checkpointing=False) | {
        "seq_len": reader.whole("block_size", "max_seq_length", "max_length", default=1024),
        "autocast": autocast,
        "recipe": "trainer",
    }
    settings = _settings(reader, batch, "bf16" if autocast == "bf16" else "fp32")
    return Imported(format="trainer", settings=settings, caveats=reader.caveats())


def _settings(reader: Reader, train: dict[str, Any], dtype: str) -> dict[str, Any]:
    model = reader.model("model_name_or_path", "model_name")
    lora = _lora(reader, model)
    precision = _quantized(reader)
    given = dtype_name(reader.get("dtype", "torch_dtype"))
    if precision is None and given is None:
        reader.tell(_DTYPE.format(dtype=dtype))
    return {"model": model, "precision": precision or given or dtype, "lora": lora, "train": train}


def _quantized(reader: Reader) -> str | None:
    """Return the precision of a base that is loaded quantized, else None."""
    kind, double = reader.get("bnb_4bit_quant_type", default="nf4"), reader.is_on("use_bnb_nested_quant")
    in_4bit, in_8bit = reader.is_on("load_in_4bit"), reader.is_on("load_in_8bit")
    if in_4bit:
        return f"{kind}-dq" if double else str(kind)
    return "int8" if in_8bit else None


def _lora(reader: Reader, model: str) -> dict[str, Any] | None:
    rank, alpha = reader.whole("lora_r", default=16), reader.get("lora_alpha", default=32)
    dropout = reader.get("lora_dropout", default=0.05)
    reader.get("lora_target_modules")
    use_dora, use_rslora = reader.is_on("use_dora"), reader.is_on("use_rslora")
    if not reader.is_on("use_peft"):
        return None
    return {
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": reader.modules(model, "lora_target_modules"),
        "use_dora": use_dora,
        "use_rslora": use_rslora,
    }


def _train(reader: Reader, checkpointing: bool) -> dict[str, Any]:
    reader.tell_if_reentrant("gradient_checkpointing_kwargs")
    attention = reader.get("attn_implementation", default="auto")
    if attention not in ("auto", "eager", "sdpa", "flash_attention_2"):
        reader.tell(f"attn_implementation: {attention} is not planned; what transformers would choose is")
        attention = "auto"
    return {
        "per_device_train_batch_size": reader.whole("per_device_train_batch_size", default=8),
        "gradient_accumulation_steps": reader.whole("gradient_accumulation_steps", default=1),
        "gradient_checkpointing": reader.is_on(
            "gradient_checkpointing", "activation_checkpointing", default=checkpointing
        ),
        "optim": reader.optimizer("optim"),
        "attn_implementation": attention,
    }
