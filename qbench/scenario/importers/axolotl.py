"""axolotl's YAML as settings of a scenario.

Source: axolotl/loaders/model.py and utils/schemas/config.py: 4-bit loading is nf4 with double quantization;
training goes through transformers' Trainer under autocast.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qbench.errors import ScenarioError
from qbench.scenario.importers.reading import Imported, ModelConfigs, Reader

_UPCAST = (
    "axolotl casts norms and embeddings of a quantized model back to 16 bit; recipe trainer keeps them in "
    "fp32, so the plan is an upper bound"
)


def from_axolotl(values: Mapping[str, Any], config_of: ModelConfigs) -> Imported:
    """Return the settings of an axolotl config. Raises ScenarioError for values that no training has."""
    reader = Reader(values, config_of)
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
            "sample_packing is off: batches are as long as their longest sequence; planned as full ones"
        )
    return Imported(format="axolotl", settings=settings, caveats=reader.caveats())


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
    adapter = reader.get("adapter", default="")
    if adapter not in ("", "lora", "qlora"):
        raise ScenarioError(
            f"adapter: given {adapter!r}; allowed: lora, qlora, or nothing for full fine-tuning"
        )
    if adapter == "qlora" and not reader.is_on("load_in_4bit"):
        raise ScenarioError(
            "adapter: given 'qlora' without load_in_4bit; axolotl trains it with load_in_4bit: true only"
        )
    rank, alpha = reader.whole("lora_r", default=8), reader.get("lora_alpha", default=16)
    dropout = reader.get("lora_dropout", default=0.0)
    reader.get("lora_target_modules")
    everything = reader.is_on("lora_target_linear")
    use_dora, use_rslora = reader.is_on("peft_use_dora"), reader.is_on("peft_use_rslora")
    if not adapter:
        return None
    return {
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": "all-linear" if everything else reader.modules(model, "lora_target_modules"),
        "use_dora": use_dora,
        "use_rslora": use_rslora,
    }


def _train(reader: Reader) -> dict[str, Any]:
    batch = reader.whole("micro_batch_size", default=1)
    # axolotl makes as many passes as an update's sequences need, unless their number is said.
    passes = max(1, reader.whole("batch_size", default=batch) // batch)
    accumulation = reader.whole("gradient_accumulation_steps", default=passes)
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
    if value in ("offload", "offload_disk"):
        reader.tell(f"gradient_checkpointing: {value} moves activations off the card; planned as kept on it")
        return True
    return reader.is_on("gradient_checkpointing")


def _attention(reader: Reader) -> str:
    chosen = reader.get("attn_implementation")
    flash, sdpa, eager = (reader.is_on(f"{name}_attention") for name in ("flash", "sdp", "eager"))
    if chosen in ("eager", "sdpa", "flash_attention_2"):
        return str(chosen)
    if chosen is not None:
        reader.tell(f"attn_implementation: {chosen} is not planned; what transformers would choose is")
    return "flash_attention_2" if flash else "sdpa" if sdpa else "eager" if eager else "auto"
