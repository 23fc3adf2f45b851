"""`flash_attention_2` on meta: what transformers runs when the package flash-attn is there.

The package has only CUDA kernels. Those that torch has built in (`_scaled_dot_product_flash_attention`) come
from its source and allocate the same (csrc/flash_attn/flash_api.cpp, mha_fwd and mha_bwd), so they stand for
them. Against sdpa, no mask is made for sliding windows, and grouped heads are never repeated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from transformers import modeling_flash_attention_utils as hf
from transformers.integrations import flash_attention as integration

from qbench.errors import StepError
from qbench.memory.kernels.attention import flash_attention
from qbench.memory.kernels.choices import FLASH_HEAD_DIM, HALF, Backend, Card, chosen_by_card

_get_target_dtype: Any = integration.get_target_dtype


@contextlib.contextmanager
def flash_attn_on(card: Card, used: set[Backend]) -> Iterator[None]:
    """Let transformers find flash-attn 2, whose kernels run as on a card and are added to `used`.

    Batches are not packed: transformers would ask the values of position ids, which meta does not have.
    """
    packed = _packed_attention_of(card, used)
    imported = (_attention_of(card, used), packed, None, hf._pad_input, hf._unpad_input)

    def lazy_imports(implementation: str | None, *rest: Any, **settings: Any) -> Any:
        return (
            imported if implementation == "flash_attention_2" else original(implementation, *rest, **settings)
        )

    original = hf._lazy_imports
    matrix = hf.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]
    with (
        mock.patch.dict(matrix, general_availability_check=lambda: True),
        mock.patch.object(hf, "_lazy_imports", lazy_imports),
        mock.patch.object(hf, "_loaded_implementation", None),
        mock.patch.object(hf, "_is_packed_sequence", return_value=False),
        mock.patch.object(integration, "get_target_dtype", _target_dtype),
    ):
        yield


def _target_dtype(query: torch.Tensor, module: torch.nn.Module) -> torch.dtype | None:
    """Ask for CUDA's autocast where the query is on meta, which has none."""
    on_cuda: Any = SimpleNamespace(dtype=query.dtype, device=torch.device("cuda"))
    dtype: torch.dtype | None = _get_target_dtype(on_cuda, module)
    return dtype


def _attention_of(card: Card, used: set[Backend]) -> Callable[..., torch.Tensor]:
    def flash_attn_func(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        alibi_slopes: torch.Tensor | None = None,
        deterministic: bool = False,
        return_attn_probs: bool = False,
    ) -> torch.Tensor:
        """The signature is flash-attn's: transformers reads it to see what is supported."""
        _check(q, card)
        used.add("flash_attention_2")
        query, key, value = (state.transpose(1, 2) for state in (q, k, v))
        return flash_attention(query, key, value, dropout_p, causal, softmax_scale).transpose(1, 2)

    return flash_attn_func


@chosen_by_card
def _runs_flash_attn(card: Card) -> bool:
    return card.capability >= (8, 0)


def _check(query: torch.Tensor, card: Card) -> None:
    """Refuse what flash-attn refuses (csrc/flash_attn/flash_api.cpp, mha_fwd)."""
    if not _runs_flash_attn(card):
        # The card is not named, since cards that answer alike share this.
        raise StepError("flash_attention_2 needs compute capability 8.0 or more; use sdpa")
    if query.dtype not in HALF:
        name = str(query.dtype).removeprefix("torch.")
        raise StepError(f"flash_attention_2 takes fp16 and bf16 only, not {name}; use sdpa, or autocast")
    if query.shape[-1] > FLASH_HEAD_DIM:
        raise StepError(
            f"flash_attention_2 takes heads of up to {FLASH_HEAD_DIM}, not {query.shape[-1]}; use sdpa"
        )


def _packed_attention_of(card: Card, used: set[Backend]) -> Callable[..., torch.Tensor]:
    attend = _attention_of(card, used)

    def flash_attn_varlen_func(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        alibi_slopes: torch.Tensor | None = None,
        deterministic: bool = False,
        return_attn_probs: bool = False,
    ) -> torch.Tensor:
        """Images side by side, [tokens, heads, dim]; outputs and row sums are as large as of one sequence."""
        one = (state.unsqueeze(0) for state in (q, k, v))
        return attend(*one, dropout_p, softmax_scale, causal).squeeze(0)

    return flash_attn_varlen_func
