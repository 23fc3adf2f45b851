"""The optimizer of a point, from torch or bitsandbytes."""

from __future__ import annotations

from collections.abc import Iterable

import bitsandbytes as bnb
import torch

LEARNING_RATE = 2e-4
"""Rate of the QLoRA paper for 7B and 13B models (arXiv 2305.14314, table 9); it moves no byte and no time."""


def make_optimizer(
    name: str, parameters: Iterable[torch.nn.Parameter], kernels: str
) -> torch.optim.Optimizer:
    """Return the optimizer that `TrainingArguments.optim` of this name gives, for the trainable parameters.

    `kernels` is the device whose kernels are meant (cuda or cpu): torch's AdamW and SGD use their
    multi-tensor form on CUDA by default and a loop on the CPU (torch/optim/optimizer.py,
    `_default_to_fused_or_foreach`), which on meta must be said.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    foreach = kernels == "cuda"
    if name == "sgd":
        return torch.optim.SGD(trainable, lr=LEARNING_RATE, foreach=foreach)
    if name == "adamw_torch":
        return torch.optim.AdamW(trainable, lr=LEARNING_RATE, foreach=foreach)
    bits = 32 if name.endswith("32bit") else 8
    optimizer: torch.optim.Optimizer = bnb.optim.AdamW(
        trainable, lr=LEARNING_RATE, optim_bits=bits, is_paged=name.startswith("paged_")
    )
    return optimizer
