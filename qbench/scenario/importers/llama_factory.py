"""LLaMA-Factory's YAML as settings of a scenario.

Source: llamafactory/hparams, model/adapter.py, model/model_utils/quantization.py and checkpointing.py:
4-bit loading is nf4 with double quantization by default, checkpointing is on unless disabled.
"""

from __future__ import annotations

from typing import Any

from qbench.scenario.importers.images import llama_factory_images
from qbench.scenario.importers.liger import liger_switch
from qbench.scenario.importers.reader import Reader
from qbench.scenario.importers.sharding import sharded

_ATTENTION = {"auto": "auto", "disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2"}


def from_llama_factory(reader: Reader) -> dict[str, Any]:
    """Return the settings of a LLaMA-Factory config, which hold where the reader has no problems."""
    model = reader.model("model_name_or_path")
    kind = reader.choice("finetuning_type", allowed=("lora", "full"), default="lora")
    stage = reader.get("stage", default="sft")
    task = _task(reader, stage)
    precision, autocast = _precision(reader, kind)
    shards = sharded(reader, unversioned=2)
    train = _train(reader, model, stage) | {"autocast": autocast, "task": task}
    settings = {
        "model": model,
        "precision": precision,
        "lora": _lora(reader, model, kind),
        **shards,
        "train": train | shards.get("train", {}),
    }
    if (vision := llama_factory_images(reader, model, stage)) is not None:
        settings["vision"] = vision
    if not (reader.is_on("packing", default=stage == "pt") or reader.is_on("neat_packing")):
        reader.tell(
            "packing is off: batches are as long as their longest sequence; the plan assumes full ones"
        )
    return settings


def _task(reader: Reader, stage: str) -> str:
    """Return what is learnt from: preferences under the losses of DPO, ORPO and KTO, or text."""
    if stage == "dpo":
        reader.get("pref_beta")
        loss = reader.get("pref_loss", default="sigmoid")
        if loss in ("sigmoid", "hinge", "ipo", "kto_pair"):
            return "dpo"
        if loss == "orpo":
            return "orpo"
        reader.leave_out("pref_loss", "less", f"{loss} is not planned; the plan includes a reference pass")
        return "dpo"
    if stage == "kto":
        reader.get("pref_beta")
        return "kto"
    if stage not in ("sft", "pt"):
        reader.leave_out("stage", "more", f"{stage} runs other passes than sft does; planned as sft")
    return "sft"


def _precision(reader: Reader, kind: str) -> tuple[str, str]:
    """Return the precision of the base and the dtype of autocast."""
    pure, bf16, fp16 = reader.is_on("pure_bf16"), reader.is_on("bf16"), reader.is_on("fp16")
    autocast = "none" if pure else "bf16" if bf16 else "fp16" if fp16 else "none"
    quantized = _quantized(reader)
    if quantized:
        return quantized, autocast
    if kind == "full" and not pure:
        return "fp32", autocast  # What trains is cast to fp32 (model/adapter.py, `_setup_full_tuning`).
    if not (pure or bf16 or fp16):
        reader.tell(
            "no dtype is named: planned in bf16, which LLaMA-Factory takes for a bf16 model (patch_config)"
        )
        return "bf16", autocast
    return "bf16" if pure or bf16 else "fp16", autocast


def _quantized(reader: Reader) -> str | None:
    """Return the precision of a base that is loaded quantized, else None."""
    reader.get("quantization_method", "quantization_type")
    double = reader.is_on("double_quantization", default=True)
    if reader.get("quantization_bit") is None:
        return None
    bits = reader.bits("quantization_bit", (4, 8))
    reader.choice("quantization_method", allowed=("bnb", "bitsandbytes"), default="bnb")
    if bits == 8:
        return "int8"
    kind = reader.choice("quantization_type", allowed=("nf4", "fp4"), default="nf4")
    return f"{kind}-dq" if double else kind


def _lora(reader: Reader, model: str, kind: str) -> dict[str, Any] | None:
    if kind == "full":
        reader.get("lora_rank", "lora_alpha", "lora_dropout", "lora_target", "use_dora", "use_rslora")
        return None
    rank = reader.whole("lora_rank", of="r", default=8)
    everything = reader.get("lora_target", default=[]) == []
    return {
        "r": rank,
        "lora_alpha": reader.number("lora_alpha", default=2 * rank),
        "lora_dropout": reader.number("lora_dropout", default=0.0),
        "target_modules": "all-linear" if everything else reader.modules(model, "lora_target"),
        "use_dora": reader.is_on("use_dora"),
        "use_rslora": reader.is_on("use_rslora"),
        "modules_to_save": reader.names("additional_target"),
    }


def _train(reader: Reader, model: str, stage: str) -> dict[str, Any]:
    off = reader.is_on("disable_gradient_checkpointing")
    # model/model_utils/checkpointing.py, get_unsloth_gradient_checkpointing_func: inputs go to the host.
    offloading = "checkpoints" if reader.is_on("use_unsloth_gc") else "auto"
    is_reentrant = reader.is_on("use_reentrant_gc", default=True)
    return {
        "per_device_train_batch_size": reader.count("per_device_train_batch_size", default=8),
        "seq_len": reader.length("cutoff_len", default=2048),
        "gradient_accumulation_steps": reader.count("gradient_accumulation_steps", default=1),
        "gradient_checkpointing": not off,
        "activation_offloading": offloading,
        "optim": reader.optimizer("optim"),
        "attn_implementation": reader.attention("flash_attn", _ATTENTION, default="auto"),
        "recipe": "llama-factory",
        # model/model_utils/liger_kernel.py: other stages need logits.
        **liger_switch(reader, model, "enable_liger_kernel", has_own_loss=stage not in ("pt", "sft")),
        "checkpoint_impl": "auto" if is_reentrant else "no_reentrant",
    }
