"""What transformers' Trainer does around forward and backward: count tokens, add up losses, clip gradients.

Followed is transformers 5.24, trainer.py: `_run_epoch`, `get_batch_samples`, `compute_loss`, `training_step`.
Its local names outlive an iteration, so that some scalars are still alive during the next forward pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from qbench.step.fused_head import FusedOutput
from qbench.step.shared_step import gathered_sum

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_GRAD_NORM = 1.0
"""Default of `TrainingArguments.max_grad_norm`."""


class TrainerLoop:
    """The scalars that Trainer's loop keeps on the device, and what it does with them."""

    def __init__(
        self, base: PreTrainedModel, device: torch.device, task: str = "sft", num_ranks: int = 1
    ) -> None:
        self._num_ranks = num_ranks
        self.total_loss = torch.zeros((), device=device)
        self.num_items: torch.Tensor | None = None
        # trl/trainer/dpo_trainer.py: `self.model_accepts_loss_kwargs = False`.
        self._counts_items = task == "sft" and _accepts_loss_kwargs(base)
        self._router_coefficient = _router_coefficient(base)
        self._last_loss: torch.Tensor | None = None
        self._norm: torch.Tensor | None = None

    def begin(self, batches: Iterable[dict[str, torch.Tensor]]) -> None:
        """Start an update from these micro-batches: count the tokens that have a label."""
        self.total_loss.zero_()
        if self._counts_items:
            counted: Any = sum(batch["labels"][..., 1:].ne(-100).sum() for batch in batches)
            if self._num_ranks > 1:
                counted = gathered_sum(counted, self._num_ranks)
            self.num_items = counted / 1

    def loss_kwargs(self, loss: str) -> dict[str, torch.Tensor]:
        """Return what Trainer hands to the model beside the batch; SFTTrainer divides by itself."""
        if self.num_items is None or loss == "chunked":
            return {}
        return {"num_items_in_batch": self.num_items}

    def loss_of(self, outputs: Any, num_batches: int) -> torch.Tensor:
        """Return the loss to go backward from, which already is a share of the update's mean."""
        loss: torch.Tensor
        if isinstance(outputs, FusedOutput):
            loss = self._trl_loss(outputs, num_batches)
        else:
            loss = outputs["loss"]
            if self.num_items is not None:
                loss *= 1
        return loss if self.num_items is not None else loss / num_batches

    def _trl_loss(self, outputs: FusedOutput, num_batches: int) -> torch.Tensor:
        """Return the loss as trl/trainer/sft_trainer.py, `SFTTrainer.compute_loss`, makes it."""
        assert outputs.log_probs is not None
        assert outputs.label_mask is not None
        per_token = -outputs.log_probs
        num_tokens = outputs.label_mask.sum() if self.num_items is None else self.num_items
        loss: torch.Tensor = per_token.sum() / num_tokens.clamp(min=1)
        if self.num_items is not None:
            loss = loss * 1
        if outputs.aux_loss is not None:
            weighted = self._router_coefficient * outputs.aux_loss
            loss = loss + weighted / (1 if self.num_items is None else num_batches)
        return loss

    def add(self, loss: torch.Tensor) -> None:
        """Add a micro-batch's loss to the running sum."""
        self._last_loss = loss.detach()
        self.total_loss += self._last_loss

    def clip(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Scale the gradients down to the largest norm that Trainer allows."""
        self._norm = None
        self._norm = torch.nn.utils.clip_grad_norm_(list(parameters), MAX_GRAD_NORM)


def _accepts_loss_kwargs(model: PreTrainedModel) -> bool:
    """Say whether the model's own loss takes the number of tokens (`Trainer.__init__`)."""
    says: bool | None = getattr(model, "accepts_loss_kwargs", None)
    if says is not None:
        return says
    parameters = inspect.signature(type(model).forward).parameters.values()
    return any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _router_coefficient(model: PreTrainedModel) -> float:
    return getattr(model.config.get_text_config(), "router_aux_loss_coef", None) or 0.0
