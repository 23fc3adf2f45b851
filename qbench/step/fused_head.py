"""Losses that never have all logits at once: the head becomes a part of the model's forward.

chunked is that of TRL's SFTTrainer: log-probabilities of the labels (trl 1.16, trainer/utils.py,
`add_fused_lm_head`). On a GPU trl's own kernels run; elsewhere, and in a plan, `TiledScores` does. liger and
cut_cross_entropy stand in step/fused_losses.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import ModelOutput

from qbench.errors import StepError
from qbench.step.fused_losses import IGNORED, cut_cross_entropy, liger_loss
from qbench.step.tiled_scores import TILE_WORDS, Logits, TiledScores
from qbench.step.unsloth_kernels import unsloth_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class LossOutput(ModelOutput):
    """A loss, and the cache of keys and values that the backbone returned, if any."""

    loss: torch.Tensor | None = None
    cache: Any = None


@dataclass
class FusedOutput(ModelOutput):
    """What the model returns in place of logits; all but `loss` and `aux_loss` have one value for a token."""

    loss: torch.Tensor | None = None
    log_probs: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    is_top1: torch.Tensor | None = None
    label_mask: torch.Tensor | None = None
    aux_loss: torch.Tensor | None = None


def fuse_head(model: PreTrainedModel, loss: str, kernels: str, on_loss: Callable[[], None]) -> None:
    """Let the model's forward compute a loss that has no logits, with the kernels of `kernels` (cuda or cpu).

    `on_loss` is called where the backbone has returned and the head begins.
    """
    if loss == "chunked":
        model.forward = MethodType(_chunked(model, kernels, on_loss), model)
        return
    text = model.config.get_text_config()
    logits = _logits(text)
    loss_of = {"liger": liger_loss, "unsloth": unsloth_loss}.get(loss, cut_cross_entropy)

    def forward(
        self: Any, *args: Any, labels: torch.Tensor, num_items_in_batch: Any = None, **kwargs: Any
    ) -> LossOutput:
        backbone = self.base_model(*args, **kwargs)
        on_loss()
        hidden = backbone.last_hidden_state
        found: Any = loss_of(
            hidden, self.get_output_embeddings(), labels, num_items_in_batch, kernels, logits
        )
        # Its name in transformers before 5.24 is past_key_values.
        cache = backbone.get("cache") if "cache" in backbone else backbone.get("past_key_values")
        return LossOutput(loss=found, cache=cache)

    model.forward = MethodType(forward, model)


def _chunked(model: PreTrainedModel, kernels: str, on_loss: Callable[[], None]) -> Callable[..., Any]:
    """Return the forward that trl gives a model, which returns a FusedOutput where there are labels."""
    text = model.config.get_text_config()
    # `SFTTrainer.__init__`: experts that can report their routing train under a loss that balances them.
    if getattr(text, "router_aux_loss_coef", None) is not None:
        text.output_router_logits = text.router_aux_loss_coef != 0 and hasattr(text, "output_router_logits")
    logits = _logits(text)

    def forward(self: Any, *args: Any, labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if labels is None:
            return type(self).forward(self, *args, **kwargs)  # As in generation.
        wants_router = getattr(text, "output_router_logits", False)
        kwargs |= {"use_cache": False} | ({"output_router_logits": True} if wants_router else {})
        backbone = self.base_model(*args, **kwargs)
        on_loss()
        output = _score(self.get_output_embeddings(), backbone.last_hidden_state, labels, kernels, logits)
        if wants_router:
            output["aux_loss"] = _balance_loss(text, backbone.router_logits, kwargs.get("attention_mask"))
            output["loss"] = output["loss"] + text.router_aux_loss_coef * output["aux_loss"]
        return output

    return forward


def _logits(text: Any) -> Logits:
    return Logits(scale=_logit_scale(text), softcap=getattr(text, "final_logit_softcapping", None))


def _logit_scale(text: Any) -> float:
    """Return what the head's output is multiplied by: each family has its own name for it."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        scale = getattr(text, name, None)
        if scale is not None:
            return float(scale)
    divisor = getattr(text, "logits_scaling", None)
    if divisor is None:
        return 1.0
    return float(divisor if text.model_type == "hyperclovax" else 1 / divisor)


def _balance_loss(text: Any, router_logits: Any, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Return the loss that keeps experts equally busy; all families of transformers share this function."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    loss: Any = load_balancing_loss_func(
        router_logits, text.num_experts, text.num_experts_per_tok, attention_mask
    )
    return loss  # type: ignore[no-any-return]


def _score(
    head: Any, hidden: torch.Tensor, labels: torch.Tensor, kernels: str, logits: Logits
) -> FusedOutput:
    hidden, labels = hidden[:, :-1], labels[:, 1:]
    mask = labels != IGNORED
    if kernels == "cuda":
        # trl scores only the tokens that have a label where it has Triton.
        rows, targets = hidden[mask], labels[mask]
    else:
        rows, targets = hidden.reshape(-1, hidden.size(-1)), labels.clamp(min=0).reshape(-1)
    scores = _scores(rows, _whole(head.weight), _whole(head.bias), targets, kernels, logits)
    spread = _spread_on_cuda if kernels == "cuda" else _spread
    log_probs, entropy, is_top1 = (spread(values, mask) for values in scores)
    return FusedOutput(
        loss=-log_probs.sum() / mask.sum().clamp(min=1),
        log_probs=log_probs,
        entropy=entropy,
        is_top1=is_top1,
        label_mask=mask,
    )


def _whole(parameter: Any) -> Any:
    """Return a parameter, gathered where it is sharded (trl 1.16, trainer/utils.py, `add_fused_lm_head`)."""
    gather = getattr(parameter, "full_tensor", None)
    return parameter if gather is None else gather()


def _scores(
    rows: torch.Tensor, weight: Any, bias: Any, targets: torch.Tensor, kernels: str, logits: Logits
) -> tuple[torch.Tensor, ...]:
    """Return log-probability, entropy and whether the label is the likeliest, one value for each row."""
    if rows.device.type == "cuda":
        trl_function = _trl_function()
        outputs = ("log_probs", "entropy", "is_top1")
        arguments = (rows, weight, bias, targets, 1.0, TILE_WORDS, logits.softcap, logits.scale, outputs)
        found = trl_function.apply(*arguments)
        return found[0], found[1], found[4]
    function: Any = TiledScores
    scores: tuple[torch.Tensor, ...] = function.apply(rows, weight, bias, targets, kernels, logits)
    return scores


def _trl_function() -> Any:
    try:
        return importlib.import_module("trl.kernels").ChunkedLogProbFunction
    except (ImportError, AttributeError) as error:
        raise StepError(
            f"recipe trl on a GPU runs trl's own kernels, which could not be loaded ({error}); "
            "pip install 'trl>=1.16', or choose recipe trainer"
        ) from error


def _spread(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return values.view(mask.shape).masked_fill(~mask, 0)


def _spread_on_cuda(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return values.new_zeros(mask.shape).masked_scatter(mask, values)
