"""axolotl's YAML as settings of a scenario.

Source: axolotl/loaders/model.py and utils/schemas/config.py: 4-bit loading is nf4 with double quantization
unless bnb_config_kwargs says otherwise; training goes through transformers' Trainer under autocast.
"""

from __future__ import annotations

from typing import Any

from qbench.scenario.importers.defaults import ATTENTION
from qbench.scenario.importers.images import axolotl_images
from qbench.scenario.importers.liger import liger_layers
from qbench.scenario.importers.reader import Reader
from qbench.scenario.importers.sharding import sharded
from qbench.scenario.liger import OTHERS, PLANNED, LigerKernel

_CUT_CROSS_ENTROPY = "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"
_LIGER = "axolotl.integrations.liger.LigerPlugin"
_LOGGING = ("axolotl.integrations.swanlab.SwanLabPlugin",)
"""Plugins that report a training and touch nothing of it (integrations/swanlab/plugins.py)."""
_LORA_KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")
_LIGER_KERNELS: dict[str, LigerKernel] = {
    "liger_rope": "rope",
    "liger_rms_norm": "rms_norm",
    "liger_glu_activation": "glu",
    "liger_swiglu": "glu",
}
_LIGER_OTHERS = ("liger_layer_norm", "liger_cross_entropy", "liger_rms_norm_gated")


def from_axolotl(reader: Reader) -> dict[str, Any]:
    """Return the settings of an axolotl config, which hold where the reader has no problems."""
    model = reader.model("base_model")
    reader.get("base_model_config")
    precision, autocast = _precision(reader)
    _resized(reader, model)
    packs_experts = reader.is_on("quantize_moe_experts")
    if packs_experts and precision == "int8":
        reader.leave_out("quantize_moe_experts", "less", "experts in 8 bit are not planned; they stay in 16")
    settings = {
        "model": model,
        "precision": precision,
        "lora": _lora(reader, model),
        "quantization": {"quantize_moe_experts": packs_experts and precision != "int8"},
        "train": _train(reader, model) | {"autocast": autocast},
    }
    if (vision := axolotl_images(reader, model)) is not None:
        settings["vision"] = vision
    _shard(reader, settings)
    if not reader.is_on("sample_packing"):
        reader.tell(
            "sample_packing is off: batches are as long as their longest sequence; the plan assumes full ones"
        )
    return settings


def _shard(reader: Reader, settings: dict[str, Any]) -> None:
    """Put in how axolotl shards: 4-bit weights, too, and nothing is upcast.

    Source: utils/schemas/validation.py, `check_fsdp_version_in_fsdp_config`; loaders/model.py,
    `_set_quantization_config` and `_prepare_model_for_quantization`; monkeypatch/accelerate/fsdp2.py.
    """
    shards = sharded(reader, unversioned=1)
    if not shards:
        return
    settings["distributed"] = shards["distributed"]
    settings["train"] |= shards["train"] | {"upcast": "none", "lora_kernels": "none"}
    if settings["precision"][:3] in ("nf4", "fp4"):
        settings["quantization"]["bnb_4bit_quant_storage"] = "bfloat16"
    if settings["train"]["loss_type"] != "auto":
        settings["train"]["loss_type"] = "full_logits"
        reader.leave_out("plugins", "less", "a fused loss over a head in shares is not planned")
    if settings["lora"] is not None and shards["distributed"]["strategy"] == "fsdp2":
        key = "fsdp_config" if reader.values.get("fsdp_config") else "fsdp"
        reader.leave_out(key, "either", "axolotl's own groups of adapters are not planned")


def _resized(reader: Reader, model: str) -> None:
    """Take a table of words that grows to a multiple of 32, which most have already.

    Source: loaders/model.py, `_resize_token_embeddings`, which never shrinks it unless `shrink_embeddings`.
    """
    key = "resize_token_embeddings_to_32x"
    words = int(reader.of_model(model, "vocab_size") or 0)
    if not reader.values.get(key) or not words or words % 32 or reader.values.get("tokens"):
        return
    reader.get(key)
    reader.tell(f"{key}: the {words:,} words of the model are a multiple of 32; planned as they are")


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
        return _in_4bit(reader), autocast
    if in_8bit:
        return "int8", autocast
    return "bf16" if bf16 or pure_bf16 else "fp16" if fp16 or pure_fp16 else "fp32", autocast


def _in_4bit(reader: Reader) -> str:
    """Return the 4-bit precision: nf4 with double quantization, over which bnb_config_kwargs are laid.

    Source: loaders/model.py, `_set_quantization_config`.
    """
    given = reader.nested("bnb_config_kwargs")
    known = ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype", "load_in_4bit")
    reader.leave_out_others("bnb_config_kwargs", given, known)
    kind = str(given.get("bnb_4bit_quant_type", "nf4"))
    if kind not in ("nf4", "fp4"):
        reader.refuse("bnb_config_kwargs", f"given bnb_4bit_quant_type {kind!r}; allowed: nf4, fp4")
        kind = "nf4"
    return f"{kind}-dq" if given.get("bnb_4bit_use_double_quant", True) else kind


def _lora_kernels(reader: Reader) -> str:
    """Return the fused kernels of adapters; axolotl switches them on by itself where the file is silent.

    Source: utils/schemas/config.py, `check_auto_enable_lora_kernels`; `auto` is the recipe's, without those
    in 8 bit.
    """
    is_on = {name: reader.is_on(name) for name in _LORA_KERNELS}
    if all(reader.get(name) is None for name in _LORA_KERNELS):
        is_left_alone = reader.is_on("trust_remote_code") or reader.get("rl")
        return "none" if is_left_alone else "auto"
    mlp, qkv, output, _ = is_on.values()
    if qkv != output:
        name = "lora_qkv_kernel" if qkv else "lora_o_kernel"
        reader.leave_out(name, "less", "planned only with both lora_qkv_kernel and lora_o_kernel")
    return {(True, True): "axolotl", (True, False): "mlp", (False, True): "attention"}.get(
        (mlp, qkv and output), "none"
    )


def _plugins(reader: Reader, model: str) -> dict[str, Any]:
    """Return what plugins decide: loss and kernels. Each brings keys of its own, which do nothing without it.

    Source: integrations/liger/plugin.py, `LigerPlugin.pre_model_load`.
    """
    plugins = reader.get("plugins", default=[])
    named = [str(each) for each in plugins] if isinstance(plugins, list) else [str(plugins)]
    cut = reader.is_on("cut_cross_entropy", default=True) and _CUT_CROSS_ENTROPY in named
    fused = reader.is_on("liger_fused_linear_cross_entropy") and _LIGER in named
    switched = [name for name in (*_LIGER_KERNELS, *_LIGER_OTHERS) if reader.is_on(name) and _LIGER in named]
    kernels = {_LIGER_KERNELS[name]: None for name in switched if name in _LIGER_KERNELS}
    layers = liger_layers(reader, model, switched[0], list(kernels)) if switched else {}
    if reader.of_model(model, "model_type") in {*PLANNED, *OTHERS}:
        for name in switched:
            if name in _LIGER_OTHERS:
                reader.leave_out(name, "less", "not planned; the kernel keeps fewer activations")
    others = [name for name in named if name not in (_CUT_CROSS_ENTROPY, _LIGER, *_LOGGING)]
    if others:
        reader.leave_out("plugins", "either", f"{', '.join(others)}: not planned")
    return {"loss_type": "cut_cross_entropy" if cut else "liger" if fused else "auto", **layers}


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
        "modules_to_save": reader.names("lora_modules_to_save"),
    }


_ADAPTER_KEYS = (
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "lora_target_modules",
    "lora_target_linear",
    "lora_modules_to_save",
    "peft_use_dora",
    "peft_use_rslora",
)


def _train(reader: Reader, model: str) -> dict[str, Any]:
    batch = reader.whole("micro_batch_size", of="per_device_train_batch_size", default=1)
    # axolotl makes as many passes as an update's sequences need, unless their number is said.
    sequences = reader.whole("batch_size", of="per_device_train_batch_size", default=batch)
    accumulation = reader.count("gradient_accumulation_steps", default=max(1, sequences // batch))
    return _rl(reader) | {
        "per_device_train_batch_size": batch,
        "seq_len": reader.length("sequence_len", default=512),
        "gradient_accumulation_steps": accumulation,
        **_checkpointing(reader),
        "optim": reader.optimizer("optimizer"),
        "attn_implementation": _attention(reader),
        "recipe": "axolotl",
        **_plugins(reader, model),
        # utils/config/__init__.py:383: re-entrant, unless it trains by reinforcement.
        "lora_kernels": _lora_kernels(reader),
        "checkpoint_impl": reader.checkpoint_impl(default="no_reentrant" if reader.get("rl") else "auto"),
    }


def _rl(reader: Reader) -> dict[str, Any]:
    """Return the task, and what its trainer of TRL decides; ipo is a loss of DPO's."""
    rl = reader.get("rl", default="sft")
    reader.get("rl_beta", "dpo_beta", "beta", "kto_desirable_weight", "kto_undesirable_weight")
    if rl in ("dpo", "ipo", "kto"):
        # trl 1.8, trainer/dpo_trainer.py: adapters on a quantized base become bf16.
        return {"task": "kto" if rl == "kto" else "dpo", "adapter_dtype": "bf16"}
    if rl == "sft" and reader.is_on("reward_model"):
        return {"task": "reward", "adapter_dtype": "bf16"}
    if rl != "sft":
        reader.leave_out("rl", "more", f"{rl} runs other passes than sft does; planned as sft")
    return {}


def _checkpointing(reader: Reader) -> dict[str, Any]:
    """Return whether layers are checkpointed, and what waits on the host.

    Source: loaders/patch_manager.py, `_apply_gradient_checkpointing_patches`, and core/trainers/mixins:
    legacy sends inputs of layers to the host; true, which offload is a former name of, sends all that is
    saved (trl's `OffloadActivations`) and recomputes nothing.
    """
    value = reader.get("gradient_checkpointing", default=False)
    offloading = reader.get("activation_offloading", default=False)
    if offloading == "legacy":
        return {"gradient_checkpointing": True, "activation_offloading": "checkpoints"}
    # unsloth is a former name of offload.
    if value in ("offload", "offload_disk", "unsloth"):
        caveat = f"{value} moves activations off the card; planned as if they stayed on it"
        reader.leave_out("gradient_checkpointing", "either", caveat)
        return {"gradient_checkpointing": True}
    if reader.is_on("activation_offloading") if offloading in (True, False) else offloading:
        caveat = f"{offloading} moves activations off the card; planned as if they stayed on it"
        reader.leave_out("activation_offloading", "either", caveat)
    return {"gradient_checkpointing": reader.is_on("gradient_checkpointing")}


def _attention(reader: Reader) -> str:
    flash, sdpa, eager = (reader.is_on(f"{name}_attention") for name in ("flash", "sdp", "eager"))
    switched = "flash_attention_2" if flash else "sdpa" if sdpa else "eager" if eager else "auto"
    return reader.attention("attn_implementation", ATTENTION, default=switched)
