"""What each recipe decides of a step where its settings say nothing: one row a recipe.

The row names the release whose sources it follows; the code that acts on a choice is in `step/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Loop = Literal["by_hand", "trainer"]
"""Who runs the passes: a loop by hand, which holds the outputs through backward, or transformers' Trainer."""
LossType = Literal["full_logits", "chunked", "liger", "cut_cross_entropy", "unsloth"]
"""How the loss is computed: from all logits at once, or by a function that never has them all."""
Upcast = Literal["peft", "axolotl", "none"]
"""Whose preparation unquantized weights go through: peft makes them fp32; axolotl does so too, and takes
norms, embeddings and head back."""
AdapterDtype = Literal["fp32", "bf16", "fp16"]
CheckpointImpl = Literal["reentrant", "no_reentrant"]
"""Form of torch.utils.checkpoint, as torch.distributed's CheckpointImpl spells it."""

LoraKernels = Literal["none", "axolotl", "attention", "mlp", "unsloth"]
"""Whose fused kernels run adapters with their base layer: axolotl's, those of attention or MLP alone, or
Unsloth's."""

Offload = Literal["none", "checkpoints", "unsloth"]
"""What waits on the host until backward: nothing, the inputs of checkpointed layers, or those in
Unsloth's way, through buffers that stay on the card."""

TrainingTask = Literal["sft", "dpo", "orpo", "kto", "reward", "sequence_classification", "grpo"]
"""What is learnt from: text; pairs of a chosen and a rejected answer (dpo, orpo, reward); judged answers
(kto); classes of texts; answers that the model generates itself (grpo)."""

Optimizer = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_torch_8bit",
    "adamw_torch_4bit",
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "sgd",
]
"""Optimizers as `TrainingArguments.optim` names them; torchao's and bitsandbytes' in 8 or 4 bit."""

Recipe = Literal["plain", "peft", "trainer", "trl", "axolotl", "llama-factory", "unsloth", "ms-swift"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """How a step is made, beside its sizes: no choice is left to auto."""

    loop: Loop
    loss_type: LossType = "full_logits"
    upcast: Upcast = "none"
    adapter_dtype: AdapterDtype = "fp32"
    """dtype of adapters on a quantized base; peft makes them fp32 on any base (`autocast_adapter_dtype`)."""
    checkpoint_impl: CheckpointImpl = "no_reentrant"
    lora_kernels: LoraKernels = "none"
    """For adapters without DoRA on a base that is not in 8 bit and computes in its own dtype."""
    activation_offloading: Offload = "none"
    """For layers that are checkpointed."""
    source: str
    """The release followed, and where it decides."""


_PEFT = "peft 0.21, utils/other.py, prepare_model_for_kbit_training"

RECIPES: dict[str, Choices] = {
    "plain": Choices(loop="by_hand", source="a loop over the model as transformers loads it"),
    "peft": Choices(loop="by_hand", upcast="peft", source=_PEFT),
    "trainer": Choices(loop="trainer", upcast="peft", source=f"transformers 5.24, trainer.py; {_PEFT}"),
    "trl": Choices(
        loop="trainer",
        loss_type="chunked",
        adapter_dtype="bf16",
        source="trl 1.16, trainer/sft_trainer.py, SFTTrainer.__init__ and compute_loss",
    ),
    "axolotl": Choices(
        loop="trainer",
        upcast="axolotl",
        checkpoint_impl="reentrant",
        lora_kernels="axolotl",
        source="axolotl 067b021, loaders/model.py, _configure_embedding_dtypes; utils/config/__init__.py:383 "
        "and utils/schemas/config.py, check_auto_enable_lora_kernels",
    ),
    "llama-factory": Choices(
        loop="trainer",
        checkpoint_impl="reentrant",
        source="LLaMA-Factory ff6d4d1, model/model_utils/checkpointing.py; model/adapter.py:340",
    ),
    "unsloth": Choices(
        loop="trainer",
        loss_type="unsloth",
        checkpoint_impl="reentrant",
        lora_kernels="unsloth",
        activation_offloading="unsloth",
        source="unsloth 2026.8, models/llama.py, get_peft_model and CausalLM_fast_forward; unsloth-zoo "
        "2026.8, training_utils.py, prepare_model_for_training",
    ),
    "ms-swift": Choices(
        loop="trainer",
        checkpoint_impl="reentrant",
        source="ms-swift 3602360, trainers/mixin.py, _fix_gradient_checkpointing; arguments/tuner_args.py",
    ),
}
"""Every recipe by name; a test holds that `Recipe` lists the same ones."""
