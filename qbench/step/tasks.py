"""What each task learns from: the rows of a batch, its tensors, and the loss from passes over them.

Pairs (dpo, orpo) stand in step/preference.py, judged answers (kto) in step/kto.py, generated ones (grpo) in
step/grpo.py. Here stand scores of whole sequences: reward, of pairs (trl 1.16, trainer/reward_trainer.py),
and sequence_classification, of one each under transformers' Trainer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from qbench.errors import StepError
from qbench.scenario.schema import Point
from qbench.step.grpo import grpo_batch, grpo_loss
from qbench.step.kto import kto_batch, kto_loss
from qbench.step.preference import Forward, preference_batch, preference_loss

PAIRED = ("dpo", "orpo", "reward")
"""Tasks whose samples are two sequences."""

_LOGIT_LOSSES = ("full_logits", "chunked")


def check_task(point: Point) -> None:
    """Raise StepError where a task is not planned with the point's other settings."""
    task, choices, recipe = point.train.task, point.choices, point.train.recipe
    if task == "sft":
        return
    reasons = {
        "runs under recipes of a Trainer": choices.loop != "trainer",
        "takes loss_type full_logits": task in SCORED and choices.loss_type != "full_logits",
        "takes loss_type full_logits or chunked": choices.loss_type not in _LOGIT_LOSSES,
        "takes lora_kernels none": choices.lora_kernels != "none" and task not in SCORED,
        "is orpo's in LLaMA-Factory alone": task == "orpo" and recipe != "llama-factory",
        "is planned under recipe trl with its own loss": task == "grpo"
        and (recipe, choices.loss_type) != ("trl", "chunked"),
        "needs a per_device_train_batch_size of at least 2": task == "kto"
        and point.train.per_device_train_batch_size < 2,
        "has another head in LLaMA-Factory, which is not planned": task == "reward"
        and recipe == "llama-factory",
        "needs max_completion_length below seq_len, which has the prompt, too": task == "grpo"
        and point.train.max_completion_length >= point.train.seq_len,
    }
    for reason, applies in reasons.items():
        if applies:
            raise StepError(f"task {task} {reason}")


SCORED = ("reward", "sequence_classification")
"""Tasks whose model has a head of scores instead of one of words."""


def rows_of(point: Point) -> int:
    """Return the sequences in one forward pass."""
    return point.train.per_device_train_batch_size * (2 if point.train.task in PAIRED else 1)


def keeps_dropout(task: str) -> bool:
    """Say whether the task's trainer leaves dropout on; TRL's trainers of preferences turn it off."""
    return task in ("sft", "sequence_classification", "grpo")


def task_batch(input_ids: torch.Tensor, point: Point) -> dict[str, torch.Tensor]:
    """Return the batch that the collator of the task makes of ids [rows, seq_len]."""
    task = point.train.task
    if task in SCORED:
        batch = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        if task == "sequence_classification":
            batch["labels"] = torch.zeros_like(input_ids[:, 0])
        return batch
    if task == "kto":
        return kto_batch(input_ids, point)
    if task == "grpo":
        return grpo_batch(input_ids, point)
    return preference_batch(input_ids, point)


def task_loss(
    forward: Forward, reference: Forward, batch: dict[str, torch.Tensor], point: Point
) -> torch.Tensor:
    """Return the loss of a batch, from passes of the model and, where there is one, of its reference."""
    task = point.train.task
    if task == "reward":
        chosen, rejected = forward(**batch, use_cache=False).logits.squeeze(-1).chunk(2)
        return -F.logsigmoid(chosen - rejected).mean()
    if task == "sequence_classification":
        loss: Any = forward(**batch)["loss"]
        return loss  # type: ignore[no-any-return]
    if task == "kto":
        return kto_loss(forward, reference, batch, point)
    if task == "grpo":
        return grpo_loss(forward, batch, point)
    return preference_loss(forward, reference, batch, point)
