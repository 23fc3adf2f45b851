"""Training on answers judged good or bad: passes over the answers and over mismatched ones, each twice.

Followed are trl 1.16, trainer/kto_trainer.py (loss_type chunked), the same file of trl 1.10, near the 1.8
that axolotl 067b021 pins (full_logits), and LLaMA-Factory ff6d4d1, train/kto/trainer.py (recipe
llama-factory). Half of the answers count as good. Of what trl logs, copies of logits are planned, as they are
at the peak.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from qbench.scenario.schema import Point
from qbench.step.fused_losses import IGNORED
from qbench.step.preference import BETA, Forward, concatenated, selected

_Pair = tuple[torch.Tensor, torch.Tensor]


def kto_batch(input_ids: torch.Tensor, point: Point) -> dict[str, torch.Tensor]:
    """Return the batch that the collator makes: answers, mismatched answers, and whether each is good."""
    mask = "labels" if point.train.recipe == "llama-factory" else "completion_mask"
    batch: dict[str, torch.Tensor] = {}
    for prefix in ("", "KL_"):
        ids = input_ids if not prefix else input_ids.clone()
        last = ids.clone() if mask == "labels" else torch.ones_like(ids)
        batch |= {f"{prefix}input_ids": ids, f"{prefix}attention_mask": torch.ones_like(ids)}
        batch[f"{prefix}{mask}"] = last
    batch["label"] = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
    return batch


def kto_loss(
    forward: Forward, reference: Forward, batch: dict[str, torch.Tensor], point: Point
) -> torch.Tensor:
    """Return the mean loss over answers."""
    if point.train.recipe == "llama-factory":
        return _llama_factory(forward, reference, batch)
    return (_trl if point.choices.loss_type == "chunked" else _trl_with_logits)(forward, reference, batch)


def _loss(of_model: _Pair, of_reference: _Pair) -> torch.Tensor:
    (scores, mismatched), (known, known_mismatched) = of_model, of_reference
    distance = (mismatched - known_mismatched).mean().detach().clamp(min=0)
    good, bad = (scores - known).chunk(2)
    losses = (1 - F.sigmoid(BETA * (good - distance)), 1 - F.sigmoid(BETA * (distance - bad)))
    return torch.cat(losses, 0).nanmean()


def _trl(forward: Forward, reference: Forward, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    def scores(of: Forward, prefix: str) -> torch.Tensor:
        inputs, labels = _inputs(batch, prefix)
        found: torch.Tensor = of(**inputs, labels=labels).log_probs.sum(-1)
        return found

    return _loss(*_passes(scores, forward, reference))


def _inputs(batch: dict[str, torch.Tensor], prefix: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    ids = batch[f"{prefix}input_ids"]
    labels = ids.masked_fill(batch[f"{prefix}completion_mask"] == 0, IGNORED)
    return {"input_ids": ids, "attention_mask": batch[f"{prefix}attention_mask"]}, labels


def _passes(
    scores: Callable[[Forward, str], torch.Tensor], forward: Forward, reference: Forward
) -> tuple[_Pair, _Pair]:
    """Return scores of answers and of mismatched answers: of the model, then of the reference."""
    with torch.no_grad():
        mismatched = scores(forward, "KL_")
    answers = scores(forward, "")
    with torch.no_grad():
        known_mismatched = scores(reference, "KL_")
        known = scores(reference, "")
    return (answers, mismatched), (known, known_mismatched)


def _trl_with_logits(forward: Forward, reference: Forward, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    kept: list[torch.Tensor] = []

    def scores(of: Forward, prefix: str) -> torch.Tensor:
        inputs, _ = _inputs(batch, prefix)
        outputs = of(**inputs, use_cache=False)
        shifted = outputs.logits[:, :-1, :]
        per_token = selected(shifted, inputs["input_ids"][:, 1:])
        if not prefix:
            kept.append(shifted)
        return per_token.sum(-1)

    passes = _passes(scores, forward, reference)
    _copied(kept[0].detach())
    return _loss(*passes)


def _copied(logits: torch.Tensor) -> None:
    """Copy logits as the metrics do: those of good and of bad answers, then those of answers' tokens: all."""
    halves = [half.clone() for half in logits.chunk(2)]
    for half in halves:
        half.clone()


def _llama_factory(forward: Forward, reference: Forward, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    def passes(of: Forward) -> tuple[_Pair, list[torch.Tensor]]:
        logits, scores, _ = concatenated(of, _named(batch, ""), copies=True)
        with torch.no_grad():
            mismatched = concatenated(of, _named(batch, "KL_"), copies=True)[1]
        return (scores, mismatched), [half.clone() for half in logits.chunk(2)]

    of_model, logits = passes(forward)
    with torch.no_grad():
        of_reference, _ = passes(reference)
    del logits  # For their sums, which are logged.
    return _loss(of_model, of_reference)


def _named(batch: dict[str, torch.Tensor], prefix: str) -> dict[str, Any]:
    return {name: batch[f"{prefix}{name}"] for name in ("input_ids", "attention_mask", "labels")}
