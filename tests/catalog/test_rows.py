"""Each cell of the data files becomes a value of its type."""

from __future__ import annotations

from typing import Any

import pytest

from qbench.catalog.gpus import find_gpu
from qbench.catalog.models import find_model
from qbench.catalog.prices import all_prices
from qbench.catalog.published import published_rows
from qbench.catalog.rows import catalog_rows, listed, optional, yes_or_no


def test_cells_become_values_and_empty_ones_none() -> None:
    (*_, row) = (row for row in published_rows() if row.r is None)
    assert (row.r, row.lora_alpha, row.target_modules) == (None, None, ())
    assert isinstance(row.value, int)
    price = all_prices()[0]
    assert isinstance(price.on_demand_usd_per_hour, float)
    assert all(isinstance(count, int) for count in price.gpus_per_instance)
    assert any(price.is_old for price in all_prices()) != all(price.is_old for price in all_prices())
    # 5.3 TFLOP/s would be wrong by 1e12; the datasheet says 312 in bf16 and 1,555 GB/s.
    gpu = find_gpu("A100-PCIE-40GB")
    assert gpu.peak_flops["bf16"] == 312e12
    assert gpu.memory_bandwidth_bytes_per_s == 1555e9
    assert isinstance(find_model("gpt2").aliases, tuple)


def test_lines_of_json_are_rows_too() -> None:
    def name(hub_id: str, **others: Any) -> str:
        return hub_id

    assert "openai-community/gpt2" in catalog_rows("models.jsonl", name)


def test_cells_that_are_neither_yes_nor_no_are_refused() -> None:
    assert (optional(int)("7"), optional(int)(""), listed("a;b"), listed("")) == (7, None, ("a", "b"), ())
    assert (yes_or_no("yes"), yes_or_no("no")) == (True, False)
    with pytest.raises(KeyError):
        yes_or_no("Yes")
