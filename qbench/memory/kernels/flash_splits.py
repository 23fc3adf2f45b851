"""Flash attention's forward where few blocks of queries would leave a card idle: they share out the keys.

Each split has a result of its own in fp32, which is added up at the end. `FLASH` in a source is
aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp; flash-attn has the same code.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from qbench.memory.kernels.choices import Card, chosen_by_card
from qbench.units import round_up

aten: Any = torch.ops.aten

_QUERIES = 64
_MOST_SPLITS = 128


def flash_forward(card: Card) -> dict[Any, Callable[..., tuple[Any, ...]]]:
    """Return flash attention's forward as a card allocates in it."""
    return {aten._scaled_dot_product_flash_attention.default: functools.partial(_forward, card=card)}


def _forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout_p: float = 0.0,
    *rest: Any,
    card: Card,
    **settings: Any,
) -> Any:
    """FLASH, mha_fwd: results of the splits come before the seed, and are freed at the end."""
    batch, heads, length, head_dim = query.shape
    blocks = batch * heads * -(-length // _QUERIES)
    keys = 256 if head_dim <= 64 else 128 if head_dim <= 128 else 64
    splits = 1 if dropout_p else num_splits(blocks, -(-key.shape[2] // keys), card)
    if splits == 1:
        return NotImplemented
    with _disable_current_modes():
        shown = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, *rest, **settings)
    out, sums = map(_anew, shown[:2])
    columns = round_up(head_dim, 32 if head_dim <= 128 else 64)
    _split_sums = query.new_empty((splits, batch, heads, length), dtype=torch.float32)
    _split_outs = query.new_empty((splits, batch, heads, length, columns), dtype=torch.float32)
    return (out, sums, *(_anew(made) if isinstance(made, torch.Tensor) else made for made in shown[2:]))


def _anew(shown: torch.Tensor) -> torch.Tensor:
    """Return a tensor like one that was made out of the ledger's sight."""
    return torch.empty_strided(shown.shape, shown.stride(), dtype=shown.dtype, device=shown.device)


@chosen_by_card
def num_splits(blocks: int, blocks_of_keys: int, card: Card) -> int:
    """Return between how many blocks the keys of a block of queries are split.

    Source: FLASH, num_splits_heuristic: the fewest with 85 % of the best use of the card, where two blocks
    run on a multiprocessor; of counts that give each split as many blocks of keys, the lowest.
    """
    slots = 2 * card.num_multiprocessors
    if blocks >= 0.8 * slots:
        return 1
    used: dict[int, float] = {}
    for splits in range(1, min(_MOST_SPLITS, slots, blocks_of_keys) + 1):
        if splits == 1 or -(-blocks_of_keys // splits) != -(-blocks_of_keys // (splits - 1)):
            waves = blocks * splits / slots
            used[splits] = waves / math.ceil(waves)
    return next(splits for splits, share in used.items() if share >= 0.85 * max(used.values()))
