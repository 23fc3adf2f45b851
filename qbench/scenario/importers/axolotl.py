"""axolotl's YAML as settings of a scenario.

Source: axolotl/loaders/model.py and utils/schemas/config.py: 4-bit loading is nf4 with double quantization;
training goes through transformers' Trainer under autocast.
"""

from __future__ import annotations

from typing import Any

from qbench.scenario.importers.reader import ATTENTION, Reader

_UPCAST = (
    "axolotl casts norms and embeddings of a quantized model back to 16 bit; recipe trainer keeps them in "
    "fp32, so the plan is an upper bound"
)


def from_axolotl(reader: Reader) -> dict[str, Any]:
    """Return the settings of an axolotl config, which hold where the reader has no problems."""
    model = reader.model("base_model")
    reader.get("base_model_config")
    precision, autocast = _precision(reader)
    settings = {
        "model": model,
        "precision": precision,
        "lora": _lora(reader, model),
        "train": _train(reader) | {"autocast": autocast},
    }
    if precision in ("nf4-dq", "int8"):
        reader.tell(_UPCAST)
    if not reader.is_on("sample_packing"):
        reader.tell(
            "sample_packing is off: batches are as long as their longest sequence; the plan assumes full ones"
        )
    return settings


def _precision(reader: Reader) -> tuple[str, str]:
    """Return the precision of the base and the dtype of autocast."""
    full = str(reader.get("bf16")).casefold() == "full"
    # Where none is named, axolotl's is bf16: auto (utils/schemas/config.py).
    unsaid = all(reader.get(name) is None for name in ("bf16", "fp16", "bfloat16", "float16"))
    bf16 = full or reader.is_on("bf16", default=unsaid)
    fp16 = reader.is_on("fp16") and not bf16
    pure_bf16, pure_fp16 = full or reader.is_on("bfloat16"), reader.is_on("float16")
    in_4bit, in_8bit = reader.is_on("load_in_4bit"), reader.is_on("load_in_8bit")
    autocast = "none"
    if not (pure_bf16 or pure_fp16):
        autocast = "bf16" if bf16 else "fp16" if fp16 else "none"
    if in_4bit:
        return "nf4-dq", autocast
    if in_8bit:
        return "int8", autocast
    return "bf16" if bf16 or pure_bf16 else "fp16" if fp16 or pure_fp16 else "fp32", autocast


def _lora(reader: Reader, model: str) -> dict[str, Any] | None:
    adapter = reader.choice("adapter", allowed=("lora", "qlora", ""), default="")
    is_in_4bit = reader.is_on("load_in_4bit") or reader.has_refused("load_in_4bit")
    if adapter == "qlora" and not is_in_4bit:
        text = "given 'qlora' without load_in_4bit; axolotl trains it with load_in_4bit: true only"
        reader.refuse("adapter", text)
    reader.get(*_ADAPTER_KEYS)
    if not adapter and not reader.has_refused("adapter"):
        return None
    everything = reader.is_on("lora_target_linear")
    return {
        "r": reader.whole("lora_r", of="r", default=8),
        "lora_alpha": reader.number("lora_alpha", default=16),
        "lora_dropout": reader.number("lora_dropout", default=0.0),
        "target_modules": "all-linear" if everything else reader.modules(model, "lora_target_modules"),
        "use_dora": reader.is_on("peft_use_dora"),
        "use_rslora": reader.is_on("peft_use_rslora"),
    }


_ADAPTER_KEYS = (
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "lora_target_modules",
    "lora_target_linear",
    "peft_use_dora",
    "peft_use_rslora",
)


def _train(reader: Reader) -> dict[str, Any]:
    batch = reader.whole("micro_batch_size", of="per_device_train_batch_size", default=1)
    # axolotl makes as many passes as an update's sequences need, unless their number is said.
    sequences = reader.whole("batch_size", of="per_device_train_batch_size", default=batch)
    accumulation = reader.count("gradient_accumulation_steps", default=max(1, sequences // batch))
    return {
        "per_device_train_batch_size": batch,
        "seq_len": reader.length("sequence_len", default=512),
        "gradient_accumulation_steps": accumulation,
        "gradient_checkpointing": _checkpointing(reader),
        "optim": reader.optimizer("optimizer", default="adamw_torch"),
        "attn_implementation": _attention(reader),
        "recipe": "trainer",
    }


def _checkpointing(reader: Reader) -> bool:
    reader.tell_if_reentrant()
    value = reader.get("gradient_checkpointing", default=False)
    # unsloth is a former name of offload.
    if value in ("offload", "offload_disk", "unsloth"):
        reader.tell(f"gradient_checkpointing: {value} moves activations off the card; planned as kept on it")
        return True
    return reader.is_on("gradient_checkpointing")


def _attention(reader: Reader) -> str:
    flash, sdpa, eager = (reader.is_on(f"{name}_attention") for name in ("flash", "sdp", "eager"))
    switched = "flash_attention_2" if flash else "sdpa" if sdpa else "eager" if eager else "auto"
    return reader.attention("attn_implementation", ATTENTION, default=switched)
