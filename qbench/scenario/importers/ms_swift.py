"""ms-swift's YAML as settings of a scenario.

Source: ms-swift 3602360, swift/arguments/ (names and defaults) and swift/trainers/mixin.py: bnb is nf4
with double quantization, nothing is upcast, and checkpointing is re-entrant on one GPU.
"""

from __future__ import annotations

from typing import Any

from qbench.scenario.importers.liger import liger_switch
from qbench.scenario.importers.reader import Reader

_ATTENTION = {name: name for name in ("auto", "sdpa", "eager", "flash_attention_2")}
_ATTENTION |= {"flash_attn": "flash_attention_2", "flash_attention_3": "flash_attention_2"}
_HARMLESS = ("split_dataset_ratio", "system", "model_author", "model_name", "dataset_num_proc")
"""Names that other tools do not use, without influence on memory."""


def from_ms_swift(reader: Reader) -> dict[str, Any]:
    """Return the settings of an ms-swift config, which hold where the reader has no problems."""
    model = reader.model("model")
    reader.get(*_HARMLESS)
    dtype = reader.dtype(model, "torch_dtype")
    if dtype is None:
        reader.tell("no torch_dtype is set: planned in bf16, as with torch_dtype: bfloat16")
    dtype = dtype or "bf16"
    kind = reader.choice("tuner_type", "train_type", allowed=("lora", "full"), default="lora")
    task = str(reader.get("rlhf_type", default="sft"))
    tasks = {"sft": "sft", "dpo": "dpo", "kto": "kto", "rm": "reward"}
    if task not in tasks:
        reader.leave_out("rlhf_type", "more", f"{task} runs other passes than sft does; planned as sft")
    if not (reader.is_on("packing") or reader.is_on("padding_free")):
        reader.tell(
            "packing is off: batches are as long as their longest sequence; the plan assumes full ones"
        )
    return {
        "model": model,
        "precision": _quantized(reader) or dtype,
        "lora": _lora(reader, model) if kind == "lora" else None,
        # `_init_mixed_precision`: float32 weights train under autocast in fp16.
        "train": _train(reader, model)
        | {"autocast": "fp16" if dtype == "fp32" else dtype, "task": tasks.get(task, "sft")},
    }


def _quantized(reader: Reader) -> str | None:
    """Return the precision of a base that is loaded quantized, else None."""
    reader.get("quant_method", "bnb_4bit_quant_type", "bnb_4bit_compute_dtype")
    double = reader.is_on("bnb_4bit_use_double_quant", default=True)
    if reader.get("quant_bits") is None:
        return None
    bits = reader.bits("quant_bits", (4, 8))
    reader.choice("quant_method", allowed=("bnb",), default="bnb")
    if bits == 8:
        return "int8"
    kind = reader.choice("bnb_4bit_quant_type", allowed=("nf4", "fp4"), default="nf4")
    return f"{kind}-dq" if double else kind


def _lora(reader: Reader, model: str) -> dict[str, Any]:
    named = reader.get("target_modules") not in (None, [])
    return {
        "r": reader.whole("lora_rank", of="r", default=8),
        "lora_alpha": reader.number("lora_alpha", default=32),
        "lora_dropout": reader.number("lora_dropout", default=0.05),
        "target_modules": reader.modules(model, "target_modules") if named else "all-linear",
        "use_dora": reader.is_on("use_dora"),
        "use_rslora": reader.is_on("use_rslora"),
        "modules_to_save": reader.names("modules_to_save"),
    }


def _train(reader: Reader, model: str) -> dict[str, Any]:
    batch = reader.count("per_device_train_batch_size", default=1)
    return {
        "per_device_train_batch_size": batch,
        "seq_len": reader.length("max_length", default=2048),
        "gradient_accumulation_steps": reader.count(
            "gradient_accumulation_steps", default=max(1, 16 // batch)
        ),
        "gradient_checkpointing": reader.is_on("gradient_checkpointing", default=True),
        "optim": reader.optimizer("optim"),
        "attn_implementation": reader.attention("attn_impl", _ATTENTION, default="auto"),
        "recipe": "ms-swift",
        **liger_switch(reader, model, "use_liger_kernel"),
        "checkpoint_impl": reader.checkpoint_impl(),
    }
