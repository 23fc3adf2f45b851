"""The table of efficiencies, and published throughput: figures with sources, of things that exist."""

from __future__ import annotations

import pytest

from qbench.catalog.efficiencies import QUANTITIES, Efficiency, efficiencies, efficiency
from qbench.catalog.gpus import find_gpu, gpus
from qbench.catalog.throughput import PublishedSpeed, published_speeds
from qbench.errors import CatalogError

SCOPES = {"any", *(gpu.name for gpu in gpus()), *(gpu.architecture for gpu in gpus())}


@pytest.mark.parametrize("row", efficiencies(), ids=lambda row: f"{row.quantity} {row.scope}")
def test_a_row_says_what_of_what_and_who_measured_it(row: Efficiency) -> None:
    assert row.quantity in QUANTITIES
    assert row.scope in SCOPES
    assert row.source
    assert 0 < row.value < 1
    assert row.unit == ("s" if row.quantity in ("launch", "dispatch") else "share of peak")


def test_rows_are_unique_and_every_quantity_has_a_general_one() -> None:
    keys = [(row.quantity, row.scope) for row in efficiencies()]
    assert len(set(keys)) == len(keys)
    assert {quantity for quantity, scope in keys if scope == "any"} == set(QUANTITIES)


def test_a_card_before_its_architecture_before_all() -> None:
    # 267.9 of 312 TFLOP/s.
    assert efficiency("matmul", find_gpu("A100-SXM4-80GB")).value == pytest.approx(267.9 / 312, abs=1e-3)
    assert efficiency("attention_forward", find_gpu("H100 SXM")).scope == "Hopper"
    assert efficiency("matmul", find_gpu("RTX 4090")).scope == "any"
    with pytest.raises(CatalogError, match="known: matmul"):
        efficiency("speed", find_gpu("T4"))


@pytest.mark.parametrize("row", published_speeds(), ids=lambda row: row.id)
def test_a_published_throughput_names_its_step_and_source(row: PublishedSpeed) -> None:
    assert row.tokens_per_s > 0
    assert row.source.split()[0] == row.step.source.split()[0]
    assert row.id.split("-")[0] == row.step.group
