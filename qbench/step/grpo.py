"""Training on answers that the model generates: generation without gradients, then passes over its answers.

Followed is trl 1.16, trainer/grpo_trainer.py, without vLLM and with its defaults: no reference (beta 0), one
update for each generation, so that no pass computes the probabilities of the answers before. All answers of
an update are generated at once. Planned are the pass over prompts and that of the last token, when the cache
of keys and values is full.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import DynamicCache

from qbench.scenario.schema import Point
from qbench.step.fused_losses import IGNORED
from qbench.step.preference import Forward

EPSILON = 0.2
"""How far a ratio counts (`GRPOConfig.epsilon`)."""


class _GrowingCache(DynamicCache):
    """A cache that has all tokens but one when the second pass begins."""

    def __init__(self, length: int, **settings: Any) -> None:
        super().__init__(**settings)
        self._length = length

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add one token to a layer's keys and values, which have grown since the prompt."""
        layer: Any = self.layers[layer_idx] if layer_idx < len(self.layers) else None
        if layer is not None and key_states.shape[-2] == 1 and layer.keys.shape[-2] < self._length:
            sizes = (*key_states.shape[:-2], self._length, key_states.shape[-1])
            layer.keys, layer.values = layer.keys.new_zeros(sizes), layer.values.new_zeros(sizes)
        found: tuple[torch.Tensor, torch.Tensor] = super().update(
            key_states, value_states, layer_idx, *args, **kwargs
        )
        return found


def grpo_batch(input_ids: torch.Tensor, point: Point) -> dict[str, torch.Tensor]:
    """Return prompts and answers of a micro-batch, and how much better than the others each answer is."""
    prompts = point.train.seq_len - point.train.max_completion_length
    ids = {"prompt": input_ids[:, :prompts].contiguous(), "completion": input_ids[:, prompts:].contiguous()}
    batch = {f"{name}_ids": part for name, part in ids.items()}
    batch |= {f"{name}_mask": torch.ones_like(part) for name, part in ids.items()}
    batch["advantages"] = torch.linspace(-1, 1, input_ids.shape[0], device=input_ids.device)
    return batch


@torch.no_grad()
def generate(forward: Forward, model: Any, batch: dict[str, torch.Tensor], point: Point) -> None:
    """Go over the prompts of an update and the last token of its answers, as generation does."""
    train = point.train
    base = model if point.lora is None else model.get_base_model()
    # Its name in transformers before 5.24 is past_key_values.
    name = "cache" if "cache" in inspect.signature(type(base).forward).parameters else "past_key_values"
    prompts = batch["prompt_ids"].repeat(train.gradient_accumulation_steps, 1)
    cached = {name: _GrowingCache(train.seq_len - 1, config=base.config), "use_cache": True}
    mask = torch.ones_like(prompts)
    outputs = forward(input_ids=prompts, attention_mask=mask, logits_to_keep=1, **cached)
    _sample(outputs.logits)
    mask = prompts.new_ones((prompts.shape[0], train.seq_len))
    positions = torch.full_like(prompts[:, -1:], train.seq_len - 1)
    outputs = forward(
        input_ids=prompts[:, -1:],
        attention_mask=mask,
        position_ids=positions,
        logits_to_keep=1,
        **cached,
    )
    _sample(outputs.logits)


def _sample(logits: torch.Tensor) -> None:
    """Make the probabilities of the next word (transformers/generation/utils.py, `_sample`)."""
    scores = logits[:, -1, :].to(copy=True, dtype=torch.float32)
    torch.softmax(scores, dim=-1)


def grpo_loss(forward: Forward, batch: dict[str, torch.Tensor], point: Point) -> torch.Tensor:
    """Return the mean loss over answers' tokens; ratios to the model before are 1 in the first pass."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    kept = point.train.max_completion_length
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[:, :-kept] = IGNORED
    outputs = forward(input_ids=ids, attention_mask=mask, labels=labels)
    per_token = outputs.log_probs[:, -kept:]
    ratio = torch.exp(per_token - per_token.detach())
    advantages = batch["advantages"].unsqueeze(1)
    clipped = torch.clamp(ratio, 1 - EPSILON, 1 + EPSILON)
    losses = -torch.min(ratio * advantages, clipped * advantages)
    answers = batch["completion_mask"]
    found: torch.Tensor = (losses * answers).sum() / answers.sum().clamp(min=1.0)
    return found
