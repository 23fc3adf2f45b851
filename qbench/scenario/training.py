"""What a scenario may say of adapters and of the training step, and the types of its values."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from qbench.scenario.liger import LigerKernel
from qbench.scenario.recipes import (
    AdapterDtype,
    CheckpointImpl,
    LoraKernels,
    LossType,
    Offload,
    Optimizer,
    Recipe,
    TrainingTask,
    Upcast,
)
from qbench.scenario.strict import Strict
from qbench.units import has_control

Attention = Literal["auto", "eager", "sdpa", "flash_attention_2"]
Autocast = Literal["none", "bf16", "fp16"]

MOST_STEPS = 1_000_000


def _on_one_line(text: str) -> str:
    if has_control(text):
        raise ValueError("a name has no line break and no other control character")
    return text


def _not_a_flag(value: Any) -> Any:
    # pydantic would read True as 1.0, so `lora_alpha: yes` would pass for a number.
    if isinstance(value, bool):
        raise ValueError("a boolean is not a number")
    return value


LATER = (
    "loss_type", "upcast", "adapter_dtype", "checkpoint_impl", "lora_kernels", "activation_offloading",
)  # fmt: skip
"""Settings that came after the first records; auto is not written, so that points keep their ids."""

Rank = Annotated[int, Field(ge=1, le=2**16, strict=True)]
Tokens = Annotated[int, Field(ge=1, le=2**24, strict=True)]
Batch = Annotated[int, Field(ge=1, le=2**20, strict=True)]
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS, strict=True)]
Number = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_not_a_flag)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(min_length=1)]
Name = Annotated[Text, AfterValidator(_on_one_line)]


class LoraSettings(Strict):
    """The adapter, in peft's own words (`peft.LoraConfig`)."""

    r: Rank = Field(default=16, description="Rank of the adapter matrices.")
    lora_alpha: Number = Field(
        default=32, gt=0, description="Scaling numerator; the update is scaled by lora_alpha / r."
    )
    lora_dropout: Number = Field(default=0.05, ge=0, lt=1, description="Dropout probability before lora_A.")
    target_modules: Name | Annotated[tuple[Name, ...], Field(min_length=1)] = Field(
        default="all-linear",
        description="Module names to adapt, or all-linear for every linear layer but the head.",
    )
    use_dora: Flag = Field(default=False, description="Weight-decomposed LoRA (DoRA).")
    use_rslora: Flag = Field(default=False, description="Scale by lora_alpha / sqrt(r) (rsLoRA).")
    modules_to_save: tuple[Name, ...] = Field(
        default=(), description="Modules trained in full beside the adapters, for example embed_tokens."
    )

    @model_serializer(mode="wrap")
    def _leave_out_later(self, values_of: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = values_of(self)
        return {key: value for key, value in values.items() if key != "modules_to_save" or value}


class TrainSettings(Strict):
    """The training step, in the words of `transformers.TrainingArguments`."""

    per_device_train_batch_size: Batch = Field(default=1, description="Sequences in one forward pass.")
    seq_len: Tokens = Field(
        default=2048, description="Tokens in one sequence; sequences are full, without padding."
    )
    gradient_accumulation_steps: Batch = Field(
        default=1, description="Forward and backward passes for one update."
    )
    gradient_checkpointing: Flag = Field(
        default=True, description="Recompute each layer in the backward pass."
    )
    optim: Optimizer = Field(
        default="adamw_torch", description="Optimizer, named as in TrainingArguments.optim."
    )
    attn_implementation: Attention = Field(
        default="auto", description="auto is what transformers would choose."
    )
    autocast: Autocast = Field(default="none", description="dtype of torch.autocast around the forward pass.")
    recipe: Recipe = Field(
        default="peft",
        description="Training stack whose step is planned: loop, preparation, loss and checkpointing.",
    )
    task: TrainingTask = Field(
        default="sft",
        description="What the model learns from: text, pairs of answers, its own answers, or labelled text.",
    )
    max_completion_length: Tokens = Field(
        default=256, description="grpo: how many tokens of seq_len are generated; the others are the prompt."
    )
    loss_type: Literal["auto", LossType] = Field(
        default="auto", description="How the loss is computed; auto follows the recipe."
    )
    upcast: Literal["auto", Upcast] = Field(
        default="auto",
        description="Whose preparation casts unquantized weights; auto follows the recipe.",
    )
    adapter_dtype: Literal["auto", AdapterDtype] = Field(
        default="auto", description="dtype of adapters on a quantized base; auto follows the recipe."
    )
    checkpoint_impl: Literal["auto", CheckpointImpl] = Field(
        default="auto",
        description="Form of gradient checkpointing, as torch.distributed names it; auto follows the recipe.",
    )
    lora_kernels: Literal["auto", LoraKernels] = Field(
        default="auto",
        description="Fused kernels for adapters, of all layers or of one part; auto follows the recipe.",
    )
    activation_offloading: Literal["auto", Offload] = Field(
        default="auto",
        description="What checkpointed layers offload to the host; auto follows the recipe.",
    )
    liger_kernels: tuple[LigerKernel, ...] = Field(
        default=(), description="Layers that run Liger's kernels; its loss is loss_type liger."
    )

    torch_compile: Flag = Field(
        default=False,
        description="Compile the model: affects planned times; memory is planned as without it.",
    )

    @model_serializer(mode="wrap")
    def _leave_out_later(self, values_of: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = values_of(self)
        unset = {
            **dict.fromkeys(LATER, "auto"),
            "task": "sft",
            "liger_kernels": None,
            "torch_compile": False,
            "max_completion_length": 256,
        }
        return {
            key: value for key, value in values.items() if key not in unset or (value and value != unset[key])
        }
