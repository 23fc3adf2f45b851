"""The optimizer of a point, from torch or bitsandbytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import bitsandbytes as bnb
import torch
from torch.utils._python_dispatch import _disable_current_modes

from qbench.step.low_bit_adam import low_bit_adamw

LEARNING_RATE = 2e-4
"""Rate of the QLoRA paper for 7B and 13B models (arXiv 2305.14314, table 9); it moves no byte and no time."""

_WITHOUT_DECAY = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")

PAGED_MIN_ELEMENTS = 100_000
"""Smallest state that bitsandbytes pages (`get_state_buffer`: 1e5 elements)."""


def make_optimizer(
    name: str, parameters: Iterable[torch.nn.Parameter | dict[str, Any]], kernels: str
) -> torch.optim.Optimizer:
    """Return the optimizer that `TrainingArguments.optim` of this name gives, for the trainable parameters.

    `parameters` may be groups of trainable ones instead.

    `kernels` is the device whose kernels are meant (cuda or cpu): torch's AdamW and SGD use their
    multi-tensor form on CUDA by default and a loop on the CPU (torch/optim/optimizer.py,
    `_default_to_fused_or_foreach`), which on meta must be said.
    """
    trainable: list[Any] = [entry for entry in parameters if isinstance(entry, dict) or entry.requires_grad]
    foreach = kernels == "cuda"
    if name == "sgd":
        return torch.optim.SGD(trainable, lr=LEARNING_RATE, foreach=foreach)
    if name == "adamw_torch_fused":
        return _fused(trainable)
    if name == "adamw_torch":
        return torch.optim.AdamW(trainable, lr=LEARNING_RATE, foreach=foreach)
    if name in ("adamw_torch_8bit", "adamw_torch_4bit"):
        return low_bit_adamw(trainable, LEARNING_RATE, 8 if name.endswith("8bit") else 4, kernels)
    bits = 32 if name.endswith("32bit") else 8
    optimizer: torch.optim.Optimizer = bnb.optim.AdamW(
        trainable, lr=LEARNING_RATE, optim_bits=bits, is_paged=name.startswith("paged_")
    )
    # The shared one keeps, by index and by id, what other trainings of this process asked for.
    optimizer.mng = _manager()  # type: ignore[attr-defined]
    if name.startswith("paged_") and any(p.is_meta for g in optimizer.param_groups for p in g["params"]):
        _page_on_meta(optimizer)
    return optimizer


def _fused(trainable: list[Any]) -> torch.optim.Optimizer:
    """Return torch's AdamW in one kernel, on meta with what it keeps: torch refuses the form there."""
    groups = [each["params"] if isinstance(each, dict) else [each] for each in trainable]
    if any(parameter.is_meta for group in groups for parameter in group):
        return _FusedOnMeta(trainable, {})
    return torch.optim.AdamW(trainable, lr=LEARNING_RATE, fused=True)


class _FusedOnMeta(torch.optim.Optimizer):
    """The state of torch/optim/adamw.py with `fused`: its step counters are on the device."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update each parameter that has a gradient, without temporaries."""
        for parameter in (
            one for group in self.param_groups for one in group["params"] if one.grad is not None
        ):
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(parameter) for _ in range(2))
            state["step"].add_(1)
            parameter.addcdiv_(state["exp_avg"], state["exp_avg_sq"])


def _manager() -> Any:
    """Return a manager of overrides that holds none; its class gives away one instance alone."""
    manager = bnb.optim.GlobalOptimManager.__new__(bnb.optim.GlobalOptimManager)
    manager.initialize()
    return manager


def trainer_groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Return what trains in Trainer's two groups: with weight decay, and norms and biases without.

    Multi-tensor optimizers go through one group after the other, so that their temporaries are smaller.
    Source: transformers/trainer.py, `create_optimizer` and `get_decay_parameter_names`.
    """
    from transformers.trainer_pt_utils import get_parameter_names

    decayed = set(get_parameter_names(model, [torch.nn.LayerNorm], list(_WITHOUT_DECAY)))
    groups: tuple[list[torch.nn.Parameter], ...] = ([], [])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name not in decayed].append(parameter)
    return [{"params": group} for group in groups]


def keep_embeddings_in_32_bit(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> None:
    """Keep the state of embeddings in 32 bit under an 8-bit optimizer, as Trainer's `create_optimizer`."""
    if not isinstance(optimizer, bnb.optim.AdamW):
        return
    embeddings = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    get_config: Any = optimizer.get_config

    def config_of(group_index: int, index: int, group: dict[str, Any]) -> dict[str, Any]:
        config: dict[str, Any] = get_config(group_index, index, group)
        if any(group["params"][index] is weight for weight in embeddings):
            config["optim_bits"] = 32
        return config

    optimizer.get_config = config_of  # type: ignore[method-assign]


def managed_bytes(optimizer: torch.optim.Optimizer, times: Mapping[torch.Tensor, int] | None = None) -> int:
    """Return the bytes of paged state: managed memory, which torch's counters do not see.

    `times` says how often a parameter stands in the model that is meant, where not once.
    """
    return sum(
        value.nbytes * (times or {}).get(parameter, 1)
        for parameter, state in optimizer.state.items()
        for value in state.values()
        if is_paged(value)
    )


def is_paged(value: object) -> bool:
    """Say whether bitsandbytes keeps a state tensor in managed memory."""
    return isinstance(value, torch.Tensor) and bool(getattr(value, "is_paged", False))


def _page_on_meta(optimizer: Any) -> None:
    """Let a paged optimizer run on meta: its large states are made out of the ledger's sight.

    Source: bitsandbytes/optim/optimizer.py, `get_state_buffer`: states of 100,000 elements or more are
    paged (managed memory, outside torch's allocator); smaller ones are ordinary tensors.
    """

    def get_state_buffer(parameter: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        if parameter.numel() < PAGED_MIN_ELEMENTS:
            return torch.zeros_like(parameter, dtype=dtype)
        with _disable_current_modes():
            buffer = torch.zeros_like(parameter, dtype=dtype)
        buffer.is_paged = True  # type: ignore[attr-defined]
        return buffer

    optimizer.get_state_buffer = get_state_buffer
    optimizer.prefetch_state = lambda parameter: None
