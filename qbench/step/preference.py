"""Training on chosen and rejected answers: both in one batch, and a pass without adapters as the reference.

Followed are trl 1.16, trainer/dpo_trainer.py (loss_type chunked), trl 1.8, which axolotl 067b021 pins
(full_logits), and LLaMA-Factory ff6d4d1, train/dpo/trainer.py (recipe llama-factory). What they log is left
out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from qbench.scenario.schema import Point
from qbench.step.fused_head import fuse_head
from qbench.step.fused_losses import IGNORED
from qbench.step.model import build_base_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig

BETA = 0.1
"""Weight of the reference (`DPOConfig.beta`, `pref_beta`)."""

Forward = Callable[..., Any]


def has_reference_model(point: Point) -> bool:
    """Say whether the reference is a second model in memory: adapters that are switched off leave one."""
    return point.train.task in ("dpo", "kto") and point.lora is None


def reference_model(point: Point, device: torch.device, config: PretrainedConfig, kernels: str) -> Any:
    """Return a second model as loaded, which does not train (trl/trainer/dpo_trainer.py)."""
    model = build_base_model(point, device, config).requires_grad_(False).eval()
    if point.choices.loss_type != "full_logits":
        fuse_head(model, point.choices.loss_type, kernels, lambda: None)
    return model


def disable_dropout(model: torch.nn.Module) -> None:
    """Set all dropout to 0 (`disable_dropout_in_model`, which these trainers call by default)."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0


def preference_batch(input_ids: torch.Tensor, point: Point) -> dict[str, torch.Tensor]:
    """Return the batch that the collator makes, chosen rows first; all tokens are of answers."""
    mask = "labels" if point.train.recipe == "llama-factory" else "completion_mask"
    last = input_ids.clone() if mask == "labels" else torch.ones_like(input_ids)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), mask: last}


def preference_loss(
    forward: Forward, reference: Forward, batch: dict[str, torch.Tensor], point: Point
) -> torch.Tensor:
    """Return the mean loss over pairs, from a pass of the model and one of its reference."""
    if point.train.recipe == "llama-factory":
        return _llama_factory(forward, reference, batch, point.train.task)
    loss = _trl if point.choices.loss_type == "chunked" else _trl_with_logits
    return loss(forward, reference, batch)


def without_adapters(forward: Forward, model: Any) -> Forward:
    """Return the pass of reference over a model whose adapters are off, layers running as they are."""

    def reference(**inputs: Any) -> Any:
        with torch.no_grad(), _without_checkpointing(model), model.disable_adapter():
            return forward(**inputs)

    return reference


def _trl(forward: Forward, reference: Forward, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORED)
    outputs = forward(**inputs, labels=labels)
    chosen, rejected = outputs.log_probs.sum(dim=1).chunk(2)
    held_against = reference(**inputs, labels=labels)
    of_chosen, of_rejected = held_against.log_probs.sum(dim=1).chunk(2)
    return _sigmoid_loss(chosen - of_chosen, rejected - of_rejected)


def _trl_with_logits(forward: Forward, reference: Forward, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    labels, mask = batch["input_ids"][..., 1:], batch["completion_mask"][..., 1:]
    outputs = forward(**inputs, use_cache=False)
    shifted = outputs.logits[..., :-1, :]
    per_token = selected(shifted, labels)
    per_token[mask == 0] = 0.0
    chosen, rejected = per_token.sum(dim=1).chunk(2)
    held_against = reference(**inputs, use_cache=False)
    of_reference = selected(held_against.logits[..., :-1, :], labels)
    of_reference[mask == 0] = 0.0
    of_chosen, of_rejected = of_reference.sum(dim=1).chunk(2)
    return _sigmoid_loss(chosen - of_chosen, rejected - of_rejected)


def selected(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of each label (trl/trainer/utils.py, `selective_log_softmax`)."""
    index = labels.unsqueeze(-1)
    if logits.dtype == torch.float32:
        selected = torch.gather(logits, -1, index)
        sums = torch.stack([torch.logsumexp(row, dim=-1) for row in logits])
        return (selected - sums.unsqueeze(-1)).squeeze(-1)
    rows = [F.log_softmax(row, dim=-1).gather(-1, of_row) for row, of_row in zip(logits, index, strict=True)]
    return torch.stack(rows).squeeze(-1)


def _llama_factory(
    forward: Forward, reference: Forward, batch: dict[str, torch.Tensor], task: str
) -> torch.Tensor:
    logits, log_probs, lengths = concatenated(forward, batch, copies=task == "dpo")
    if task == "orpo":
        chosen, rejected = (log_probs / lengths).chunk(2)
        odds = (chosen - rejected) - (torch.log1p(-torch.exp(chosen)) - torch.log1p(-torch.exp(rejected)))
        return (-chosen + BETA * -F.logsigmoid(odds)).mean()
    chosen, rejected = log_probs.chunk(2)
    with torch.no_grad():
        _, held_against, _ = concatenated(reference, batch, copies=True)
    of_chosen, of_rejected = held_against.chunk(2)
    del logits  # For its means, which are logged.
    return _sigmoid_loss(chosen - of_chosen, rejected - of_rejected)


def concatenated(
    forward: Forward, batch: dict[str, torch.Tensor], copies: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits in fp32, the log-probability of each row, and its tokens (`concatenated_forward`)."""
    inputs = {name: tensor.clone() for name, tensor in batch.items()} if copies else dict(batch)
    labels = inputs.pop("labels")
    logits: torch.Tensor = forward(**inputs, use_cache=False).logits.to(torch.float32)
    labels = labels[:, 1:].clone()
    mask = labels != IGNORED
    labels[~mask] = 0
    scores = logits[:, :-1, :].log_softmax(-1)
    per_token = torch.gather(scores, dim=2, index=labels.unsqueeze(2)).squeeze(2)
    return logits, (per_token * mask).sum(-1), mask.sum(-1)


def _sigmoid_loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    return -F.logsigmoid(BETA * (chosen - rejected)).mean()


@contextlib.contextmanager
def _without_checkpointing(model: torch.nn.Module) -> Iterator[None]:
    """Run layers as they are for a while (trl's `disable_gradient_checkpointing`)."""
    modules: list[Any] = [one for one in model.modules() if getattr(one, "gradient_checkpointing", False)]
    for module in modules:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module in modules:
            module.gradient_checkpointing = True
