"""Argument files of TRL's SFT script, and of scripts that hand a model to its SFTTrainer.

Source: trl/trainer/{sft_config,model_config}.py and trl/trainer/utils.py, for names and defaults;
peft's examples/sft/{train,utils}.py, which spell some of them their own way.
"""

from __future__ import annotations

from typing import Any

from qbench.scenario.importers.defaults import ATTENTION
from qbench.scenario.importers.liger import liger_switch
from qbench.scenario.importers.reader import Reader
from qbench.scenario.importers.sharding import sharded
from qbench.scenario.importers.values import dtype_name

DTYPE_KEYS = ("dtype", "torch_dtype", "model_init_kwargs.dtype", "model_init_kwargs.torch_dtype")
"""Keys that name the dtype of the weights, model_init_kwargs last, as scripts put their own over it."""

PADDED = "packing is off: batches are as long as their longest sequence; the plan assumes full ones"
"""Caveat of scripts that pad each batch."""

_FLOAT32 = (
    "no dtype is set: TRL would load unquantized weights and compute 4-bit products in float32; planned as "
    "if dtype: bfloat16 were set"
)
_ADAPTED = ("use_peft", "use_peft_lora")


def from_trl(reader: Reader) -> dict[str, Any]:
    """Return the settings of a TRL config, which hold where the reader has no problems."""
    reader = with_model_arguments(reader)
    model = reader.model("model_name_or_path", "model_name")
    fp16 = reader.is_on("fp16")
    autocast = "bf16" if reader.is_on("bf16", default=not fp16) else "fp16" if fp16 else "none"
    train = train_settings(reader, checkpointing=True) | {
        **liger_switch(reader, model, "use_liger_kernel", "use_liger", has_own_loss=True),
        "seq_len": reader.length("max_length", "max_seq_length", default=1024),
        "autocast": autocast,
        "recipe": "trl",
    }
    quantized, has_adapter = quantized_precision(reader), reader.is_on(*_ADAPTED)
    train |= trainer_task(reader)
    if quantized and not has_adapter and not reader.has_refused(*_ADAPTED):
        reader.refuse(
            _ADAPTED[0],
            "not on; read as TRL's arguments, a quantized base without adapters cannot be trained: add "
            "use_peft: true, or read it with --from-format trainer",
        )
    shards = sharded(reader, unversioned=2)
    settings = {
        "model": model,
        "precision": _precision(reader, model, quantized),
        "lora": lora_settings(reader, model, has_adapter),
        **shards,
        "train": train | shards.get("train", {}),
    }
    if not reader.is_on("packing"):
        reader.tell(PADDED)
    return settings


def _precision(reader: Reader, model: str, quantized: str | None) -> str:
    given = reader.dtype(model, *DTYPE_KEYS)
    if given is None and quantized != "int8":
        reader.tell(_FLOAT32 if quantized else "no dtype is set: base weights are planned in fp32")
    return quantized or given or "fp32"


def quantized_precision(reader: Reader) -> str | None:
    """Return the precision of a base that is loaded quantized, else None."""
    kinds = ("bnb_4bit_quant_type", "quant_type")
    reader.get(*kinds)
    double = reader.is_on(
        "use_bnb_nested_quant", "use_nested_quant", "double_quant", "bnb_4bit_use_double_quant"
    )
    in_4bit = reader.is_on("load_in_4bit", "use_4bit_quantization")
    in_8bit = reader.is_on("load_in_8bit", "use_8bit_quantization")
    if dtype_name(reader.get("bnb_4bit_compute_dtype")) == "fp32" and in_4bit:
        reader.tell("bnb_4bit_compute_dtype: products in float32 are planned in bf16")
    if in_4bit:
        kind = reader.choice(*kinds, allowed=("nf4", "fp4"), default="nf4")
        return f"{kind}-dq" if double else kind
    return "int8" if in_8bit else None


def lora_settings(reader: Reader, model: str, is_adapted: bool) -> dict[str, Any] | None:
    """Return the adapters that a config describes, None where there are none."""
    if not is_adapted:
        reader.get(*_ADAPTER_KEYS)
        return None
    return {
        "r": reader.whole("lora_r", "lora_rank", of="r", default=16),
        "lora_alpha": reader.number("lora_alpha", default=32),
        "lora_dropout": reader.number("lora_dropout", default=0.05),
        "target_modules": reader.modules(model, "lora_target_modules", "lora_modules"),
        "use_dora": reader.is_on("use_dora"),
        "use_rslora": reader.is_on("use_rslora"),
        "modules_to_save": reader.names("lora_modules_to_save", "modules_to_save"),
    }


_ADAPTER_KEYS = (
    "lora_r",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "lora_target_modules",
    "lora_modules",
    "lora_modules_to_save",
    "modules_to_save",
    "use_dora",
    "use_rslora",
)


def train_settings(reader: Reader, checkpointing: bool) -> dict[str, Any]:
    """Return what TrainingArguments say of a step; `checkpointing` is its default."""
    return {
        "per_device_train_batch_size": reader.count("per_device_train_batch_size", default=8),
        "gradient_accumulation_steps": reader.count("gradient_accumulation_steps", default=1),
        "gradient_checkpointing": reader.is_on(
            "gradient_checkpointing", "activation_checkpointing", default=checkpointing
        ),
        "optim": reader.optimizer("optim"),
        "attn_implementation": _attention(reader),
        "checkpoint_impl": reader.checkpoint_impl(),
    }


_TASKS: dict[str, tuple[str, ...]] = {
    "grpo": ("num_generations", "reward_funcs", "max_completion_length", "use_vllm", "vllm_mode"),
    "kto": ("desirable_weight", "undesirable_weight"),
    "reward": ("center_rewards_coefficient",),
    "dpo": (
        "max_prompt_length",
        "precompute_ref_log_probs",
        "ref_model_init_kwargs",
        "label_smoothing",
        "beta",
    ),
}
"""Keys of one trainer's config alone, asked in this order: a file does not name its trainer."""
_TRAINERS = {"grpo": "GRPOTrainer", "kto": "KTOTrainer", "reward": "RewardTrainer", "dpo": "DPOTrainer"}
_OF_TASKS = (
    "beta", "label_smoothing", "max_prompt_length", "loss_type", "desirable_weight", "undesirable_weight",
    "center_rewards_coefficient", "num_generations", "reward_funcs", "max_completion_length",
)  # fmt: skip
"""Keys of these trainers that are planned, or move no memory."""


def trainer_task(reader: Reader) -> dict[str, Any]:
    """Return the task of the trainer that a file is for, as its keys show, and its sizes."""
    given = [key for key, value in reader.values.items() if value is not None]
    task = next((name for name, keys in _TASKS.items() if set(keys) & set(given)), "sft")
    if task == "sft":
        return {"task": task}
    reader.tell(f"its keys are those of {_TRAINERS[task]}: planned as task {task}")
    completion = reader.get("max_completion_length")
    reader.get(*_OF_TASKS)
    if reader.is_on("precompute_ref_log_probs"):
        reader.leave_out(
            "precompute_ref_log_probs", "less", "the plan includes the reference pass in each step"
        )
    if task != "grpo":
        return {"task": task}
    return _grpo(reader, completion)


def _grpo(reader: Reader, completion: Any) -> dict[str, Any]:
    """Return sizes of generated answers: prompt and answer are cut each for itself (GRPOConfig)."""
    if reader.is_on("use_vllm"):
        reader.leave_out("use_vllm", "more", "vLLM's share of the card is not planned")
    if reader.get("beta", default=0.0):
        reader.leave_out("beta", "more", "the pass of a reference is not planned")
    tokens = 512 if completion is None else reader.whole("max_completion_length", of="seq_len", default=512)
    prompt = reader.get("max_prompt_length")
    if prompt is None:
        reader.tell("no max_prompt_length is set: prompts are planned at 512 tokens")
    prompt_tokens = 512 if prompt is None else reader.whole("max_prompt_length", of="seq_len", default=512)
    return {"task": "grpo", "max_completion_length": tokens, "seq_len": prompt_tokens + tokens}


def with_model_arguments(reader: Reader) -> Reader:
    """Return a reader that also has the keys of model_init_kwargs, as model_init_kwargs.dtype.

    trl/trainer/sft_trainer.py hands them to `from_pretrained`.
    """
    given = reader.nested("model_init_kwargs")
    reader.leave_out_others(
        "model_init_kwargs",
        given,
        ("dtype", "torch_dtype", "attn_implementation", "trust_remote_code", "use_cache"),
    )
    within = {f"model_init_kwargs.{key}": value for key, value in given.items()}
    if "attn_implementation" in given:
        within = {"attn_implementation": given["attn_implementation"]} | within
    return reader.spelt_as({**within, **reader.values}) if given else reader


def _attention(reader: Reader) -> str:
    flash = reader.is_on("use_flash_attn", "flash_attn")
    return reader.attention("attn_implementation", ATTENTION, "flash_attention_2" if flash else "auto")
