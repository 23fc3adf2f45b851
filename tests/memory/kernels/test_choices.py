"""Which kernel a card runs: worked out by hand from torch's and bitsandbytes' conditions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qbench.memory.kernels.choices import (
    ATTENTION,
    AttentionCall,
    Capability,
    Card,
    attention_backend,
    fuses_4bit,
    kernel_caveats,
)
from qbench.units import MIB

T4, A100, RTX_3090, RTX_4090, H100, B200, B300, RTX_5090 = (
    Card(capability=capability)
    for capability in ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0))
)


def backend(card: Card, kv_heads: int = 8, head_dim: int = 128, **settings: Any) -> str:
    """Return the backend of causal attention in bf16 with 8 heads, unless said otherwise."""
    values = {
        "dtype": torch.bfloat16,
        "heads": (8, kv_heads, kv_heads),
        "head_dims": (head_dim, head_dim, head_dim),
        "lengths": (1024, 1024),
        "is_causal": not settings.get("has_mask", False),
        "enable_gqa": kv_heads != 8,
    }
    return attention_backend(AttentionCall(**values | settings), card)


@pytest.mark.parametrize("kv_heads", [8, 2])
@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (A100, "flash"),
        (RTX_3090, "flash"),
        (RTX_4090, "flash"),
        (RTX_5090, "flash"),
        # check_prefer_cudnn_attention: compute capability 9 and 10 only.
        (H100, "cudnn"),
        (B200, "cudnn"),
        (B300, "cudnn"),
        # Before sm_80 neither flash nor memory-efficient attention takes bf16.
        (T4, "math"),
    ],
)
def test_causal_attention_in_bf16(card: Card, kv_heads: int, expected: str) -> None:
    assert backend(card, kv_heads) == expected


@pytest.mark.parametrize(
    ("card", "kv_heads", "expected"),
    [
        (T4, 8, "efficient"),
        (T4, 2, "math"),
        (A100, 8, "flash"),
        (H100, 2, "cudnn"),
    ],
)
def test_causal_attention_in_fp16(card: Card, kv_heads: int, expected: str) -> None:
    assert backend(card, kv_heads, dtype=torch.float16) == expected


@pytest.mark.parametrize("card", [T4, A100, RTX_4090, H100, RTX_5090])
def test_fp32_is_for_the_efficient_kernel_and_grouped_heads_for_none(card: Card) -> None:
    assert backend(card, dtype=torch.float32) == "efficient"
    assert backend(card, kv_heads=2, dtype=torch.float32) == "math"


@pytest.mark.parametrize(
    ("card", "kv_heads", "expected"),
    [(A100, 8, "efficient"), (A100, 2, "math"), (H100, 8, "cudnn"), (H100, 2, "cudnn")],
)
def test_a_mask_rules_out_flash(card: Card, kv_heads: int, expected: str) -> None:
    assert backend(card, kv_heads, has_mask=True) == expected


@pytest.mark.parametrize(
    ("card", "head_dim", "dropout_p", "expected"),
    [
        (A100, 256, 0.1, "flash"),
        # Backward on sm_86, sm_89 and sm_120: up to 192, or above 224 without dropout.
        (RTX_4090, 192, 0.1, "flash"),
        (RTX_4090, 200, 0.0, "efficient"),
        (RTX_3090, 256, 0.0, "flash"),
        (RTX_3090, 256, 0.1, "efficient"),
        (RTX_5090, 224, 0.0, "efficient"),
        # cuDNN 9.20 ends at 256 on Hopper.
        (H100, 256, 0.0, "cudnn"),
        (H100, 264, 0.0, "efficient"),
        (A100, 264, 0.0, "efficient"),
        # Flash pads 60 to 64; the efficient kernel wants multiples of 8 in 16 bit.
        (A100, 60, 0.0, "flash"),
        (H100, 60, 0.0, "flash"),
        (T4, 60, 0.0, "math"),
    ],
)
def test_head_dim_and_dropout(card: Card, head_dim: int, dropout_p: float, expected: str) -> None:
    assert backend(card, head_dim=head_dim, dropout_p=dropout_p) == expected


def test_flash_takes_wide_heads_on_small_cards_where_nothing_trains() -> None:
    assert backend(RTX_4090, head_dim=200, requires_grad=False) == "flash"


@pytest.mark.parametrize(("dropout_p", "expected"), [(0.125, "cudnn"), (0.1, "flash")])
def test_cudnn_drops_out_in_sixteenths(dropout_p: float, expected: str) -> None:
    assert backend(H100, dropout_p=dropout_p) == expected


@pytest.mark.parametrize(("card", "expected"), [(H100, "cudnn"), (A100, "efficient")])
def test_latent_attention_has_wider_keys_than_values(card: Card, expected: str) -> None:
    assert backend(card, head_dims=(192, 192, 128)) == expected


def test_flash_is_causal_over_squares_only() -> None:
    assert backend(A100, lengths=(8, 1024)) == "efficient"
    assert backend(A100, lengths=(8, 1024), is_causal=False) == "flash"


def test_without_flash_what_is_left() -> None:
    windows = Card(capability=(8, 9), has_flash=False)
    assert backend(windows) == "efficient"
    assert backend(windows, kv_heads=2) == "math"


def test_every_rule_says_what_it_takes_and_where_that_is_written() -> None:
    assert [rule.backend for rule in ATTENTION] == ["cudnn", "flash", "efficient", "math"]
    assert all(rule.says and rule.source for rule in ATTENTION)


@pytest.mark.parametrize(
    ("capability", "mib"), [((7, 5), 8.125), ((8, 0), 8.125), ((8, 9), 8.125), ((9, 0), 32), ((12, 0), 32)]
)
def test_cublas_workspace(capability: Capability, mib: float) -> None:
    assert Card(capability=capability).workspace_bytes == int(mib * MIB)


SQUARE, UP, BF16 = (4096, 4096), (14_336, 4096), torch.bfloat16


@pytest.mark.parametrize(
    ("card", "shape", "most_tokens"),
    [
        # 64 column blocks are 0.59 of the A100's 108 multiprocessors: square products lose from 6 tokens on.
        (A100, SQUARE, 5),
        # 224 blocks are two waves and K < N.
        (A100, UP, 64),
        # 64 blocks are half a wave of 128 multiprocessors; with 64 or more of them, up to 8 tokens.
        (RTX_4090, SQUARE, 8),
        # 224 blocks are 1.75 waves, which is more than 0.8 of one, and 200 blocks or more.
        (RTX_4090, UP, 128),
        # 224 blocks are 1.7 waves of 132.
        (H100, UP, 32),
        # The T4's tensor cores do not take bf16.
        (T4, SQUARE, 7),
    ],
)
def test_4bit_products_are_fused_up_to_so_many_tokens(
    card: Card, shape: tuple[int, int], most_tokens: int
) -> None:
    assert fuses_4bit(card, BF16, most_tokens, shape, 64)
    assert not fuses_4bit(card, BF16, most_tokens + 1, shape, 64)


def test_4bit_products_of_small_weights_are_fused_longer_on_an_a100() -> None:
    # 16 blocks are less than a third of a wave and K < N / 2: up to 1536 tokens.
    assert fuses_4bit(A100, BF16, 1536, (1024, 256), 64)
    assert not fuses_4bit(A100, BF16, 1537, (1024, 256), 64)


def test_blocks_that_straddle_rows_are_never_fused() -> None:
    assert not fuses_4bit(A100, BF16, 1, (4096, 96), 64)


def test_caveats_name_what_is_not_known() -> None:
    assert list(kernel_caveats(A100, {"flash", "math"}, 4096, has_4bit=True)) == []
    (cudnn,) = kernel_caveats(H100, {"cudnn"}, 4096, has_4bit=False)
    assert "workspace" in cudnn
    (few,) = kernel_caveats(A100, {"flash"}, 512, has_4bit=True)
    assert "512 tokens" in few
    assert few.endswith("108")
