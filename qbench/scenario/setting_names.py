"""The names of settings: one row for each field of a Point, by the name of the field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Names:
    """What a setting is called beside the name of its field."""

    title: str
    """Head of a column."""
    short: str = ""
    """Head of a narrow column, and name in a sentence; empty where it is the field's own."""
    label: str = ""
    """Name in a form; empty where it is the title."""
    flag: str = ""
    """Flag of the commands, with underscores, and keyword in Python; empty if there is none."""
    also: tuple[str, ...] = ()
    """Names that people and other tools use. They are refused, with the right one."""
    page: bool = False
    """Whether the planner page has a field for it."""
    meant: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Values that people and other tools write, to what is meant. They are refused, with the right one."""


_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "half": "fp16", "16bit": "bf16"}
_PRECISIONS = _DTYPES | {"4bit": "nf4", "int4": "nf4", "qlora": "nf4-dq", "8bit": "int8", "32bit": "fp32"}
_OPTIMIZERS = {
    "adamw": "adamw_torch",
    "adam": "adamw_torch",
    "adamw_hf": "adamw_torch",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
}
_LOSSES = {"cce": "cut_cross_entropy", "fused": "chunked"}
_RECIPES = {"sft": "trl", "sfttrainer": "trl", "llamafactory": "llama-factory", "swift": "ms-swift"}
_FORMS = {"re_entrant": "reentrant", "non_reentrant": "no_reentrant", "nonreentrant": "no_reentrant"}
_STORAGES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_STRATEGIES = {"fsdp": "fsdp2", "multi_gpu": "ddp", "deepspeed": "zero3", "auto": "device_map"}
_ATTENTION = dict.fromkeys(("flash", "fa2", "flash_attn", "flash_attention"), "flash_attention_2")

NAMES = {
    "model": Names("Model", page=True),
    "weights": Names("Weights"),
    "precision": Names("Precision", flag="precision", also=("dtype",), page=True, meant=_PRECISIONS),
    "data": Names("Data"),
    "r": Names("Rank", flag="r", also=("rank", "lora_r", "lora_rank"), page=True),
    "lora_alpha": Names("Alpha", "alpha", also=("alpha",)),
    "lora_dropout": Names("Dropout", "dropout", "LoRA dropout", "lora_dropout", ("dropout",), page=True),
    "target_modules": Names("Targets", "targets", "Target modules", "target_modules", page=True),
    "use_dora": Names("DoRA"),
    "use_rslora": Names("rsLoRA"),
    "modules_to_save": Names("Trained modules", flag="modules_to_save"),
    "per_device_train_batch_size": Names(
        "Batch", "batch", "Batch (sequences)", "batch", ("batch_size", "micro_batch_size"), page=True
    ),
    "seq_len": Names(
        "Tokens", "tokens", "Sequence (tokens)", "seq", ("max_length", "max_seq_length", "sequence_len"), True
    ),
    "gradient_accumulation_steps": Names(
        "Accumulation", "accum", "", "gradient_accumulation_steps", ("grad_accum", "accum")
    ),
    "gradient_checkpointing": Names("Checkpointing", "ckpt", flag="gradient_checkpointing", page=True),
    "optim": Names("Optimizer", flag="optim", also=("optimizer",), page=True, meant=_OPTIMIZERS),
    "attn_implementation": Names(
        "Attention", "attn", flag="attn", also=("attention",), page=True, meant=_ATTENTION
    ),
    "autocast": Names("Autocast", flag="autocast", page=True, meant=_DTYPES),
    "recipe": Names("Recipe", flag="recipe", page=True, meant=_RECIPES),
    "loss_type": Names("Loss", flag="loss_type", also=("loss",), meant=_LOSSES),
    "upcast": Names("Upcast", flag="upcast", meant={"fp32": "peft", "float32": "peft"}),
    "adapter_dtype": Names("Adapter dtype", flag="adapter_dtype", meant=_DTYPES),
    "checkpoint_impl": Names(
        "Checkpointing form", "", "", "checkpoint_impl", ("use_reentrant",), meant=_FORMS
    ),
    "task": Names("Task", flag="task", also=("stage", "rl")),
    "max_completion_length": Names("Completion", flag="max_completion_length"),
    "lora_kernels": Names("LoRA kernels", flag="lora_kernels"),
    "activation_offloading": Names("Offloading", flag="activation_offloading"),
    "liger_kernels": Names("Liger kernels", flag="liger_kernels"),
    "torch_compile": Names("torch.compile", "compiled", flag="torch_compile"),
    "bnb_4bit_quant_storage": Names(
        "4-bit storage", "", "", "bnb_4bit_quant_storage", ("quant_storage",), meant=_STORAGES
    ),
    "quantize_moe_experts": Names("4-bit experts", flag="quantize_moe_experts"),
    "strategy": Names("Strategy", flag="strategy", page=True, also=("distributed_type",), meant=_STRATEGIES),
    "gpus": Names("GPUs", flag="gpus", page=True, also=("num_processes", "num_gpus", "nproc_per_node")),
    "reshard_after_forward": Names("Reshard", also=("fsdp_reshard_after_forward",)),
    "transformer_cls_names_to_wrap": Names("Wrapped", also=("fsdp_transformer_layer_cls_to_wrap",)),
    "bucket_cap_mb": Names("Bucket (MiB)", "bucket"),
    "gradient_as_bucket_view": Names("Bucket views"),
    "reduce_bucket_size": Names("Reduce bucket"),
    "overlap_comm": Names("Overlap"),
    "contiguous_gradients": Names("Contiguous gradients"),
    "allgather_bucket_size": Names("Gather bucket"),
    "stage3_prefetch_bucket_size": Names("Prefetch bucket"),
    "stage3_param_persistence_threshold": Names("Persistence threshold"),
    "stage3_max_live_parameters": Names("Live parameters"),
    "stage3_max_reuse_distance": Names("Reuse distance"),
    "sub_group_size": Names("Subgroup"),
    "num_images": Names("Images", "images", flag="num_images", also=("images",)),
    "image_size": Names("Image size", flag="image_size", also=("image_max_pixels", "max_pixels")),
    "freeze_vision_tower": Names("Frozen tower", flag="freeze_vision_tower"),
    "freeze_multi_modal_projector": Names("Frozen projector", flag="freeze_multi_modal_projector"),
}
