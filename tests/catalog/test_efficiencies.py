"""The tables of efficiencies: figures with sources, of things that exist."""

from __future__ import annotations

import pytest

from qbench.catalog.efficiencies import (
    QUANTITIES,
    AttentionShare,
    Efficiency,
    attention_share,
    attention_shares,
    efficiencies,
    efficiency,
)
from qbench.catalog.gpus import find_gpu, gpus
from qbench.errors import CatalogError

SCOPES = {"any", *(gpu.name for gpu in gpus()), *(gpu.architecture for gpu in gpus())}
TIMES = ("launch", "dispatch", "matmul_fixed", "collective")


@pytest.mark.parametrize("row", efficiencies(), ids=lambda row: f"{row.quantity} {row.scope}")
def test_a_row_says_what_of_what_and_who_measured_it(row: Efficiency) -> None:
    assert row.quantity in QUANTITIES
    assert row.scope in SCOPES
    assert row.source
    assert 0 < row.least <= row.value <= row.most
    # The catalog's peak of fp32 is that of vector cores, which AMD's matrix cores exceed.
    assert row.most <= 1 or "matrix cores" in row.notes
    of = "share of bandwidth" if row.quantity == "eager" else "share of peak"
    assert row.unit == ("s" if row.quantity in TIMES else of)


@pytest.mark.parametrize("row", attention_shares(), ids=lambda row: f"{row.kernel} {row.scope} {row.tokens}")
def test_a_row_of_attention_says_which_kernel_and_who_measured_it(row: AttentionShare) -> None:
    assert row.kernel in ("flash", "cudnn")
    assert row.direction in ("forward", "backward")
    assert row.scope in SCOPES
    assert row.source
    assert 0 < row.share < 1


def test_rows_are_unique_and_every_quantity_has_a_general_one() -> None:
    keys = [(row.quantity, row.scope) for row in efficiencies()]
    assert len(set(keys)) == len(keys)
    assert {quantity for quantity, scope in keys if scope == "any"} == set(QUANTITIES)


def test_a_card_before_its_architecture_before_all() -> None:
    assert efficiency("matmul", find_gpu("A100-SXM4-80GB")).value == 0.86
    assert efficiency("matmul_fp32", find_gpu("V100-SXM2-32GB")).scope == "Volta"
    assert efficiency("matmul", find_gpu("RTX 4090")).scope == "any"
    with pytest.raises(CatalogError, match="known: matmul"):
        efficiency("speed", find_gpu("T4"))


def test_attention_grows_with_the_logarithm_of_its_length_between_two_that_were_measured() -> None:
    a100 = find_gpu("A100-SXM4-80GB")
    assert attention_share("flash", "forward", a100, 1024) == 0.36
    # sqrt(1024 x 2048) tokens are half way from 0.36 to 0.46.
    assert attention_share("flash", "forward", a100, 1448) == pytest.approx(0.41, abs=1e-4)
    assert attention_share("flash", "forward", a100, 16) == 0.24
    assert attention_share("flash", "forward", a100, 2**20) == 0.57


def test_hopper_has_flash_attention_2_of_its_own_and_a_faster_cudnn() -> None:
    h100 = find_gpu("H100 SXM")
    # 298 and 484 of 989 TFLOPS at 2,048 tokens.
    assert attention_share("flash", "forward", h100, 2048) == pytest.approx(298 / 989, abs=1e-3)
    assert attention_share("cudnn", "forward", h100, 2048) == pytest.approx(484 / 989, abs=1e-3)
