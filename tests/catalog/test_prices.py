"""Every price belongs to a catalog GPU, and old prices are never the cheapest."""

from __future__ import annotations

import pytest

from qbench.catalog.gpus import gpus
from qbench.catalog.prices import Price, all_prices, cheapest_on_demand, prices
from qbench.errors import CatalogError


@pytest.mark.parametrize("price", all_prices(), ids=lambda price: f"{price.gpu}-{price.cloud}-{price.date}")
def test_row_is_whole(price: Price) -> None:
    assert price.gpu in {spec.name for spec in gpus()}
    assert price.cloud
    assert price.source
    assert price.date.startswith(("undated", "2026-"))
    assert price.gpus_per_instance
    assert 0 < price.on_demand_usd_per_hour <= price.on_demand_median_usd_per_hour < 20
    assert (price.spot_usd_per_hour is None) == (price.spot_median_usd_per_hour is None)
    if price.spot_usd_per_hour is not None and price.spot_median_usd_per_hour is not None:
        assert 0 < price.spot_usd_per_hour <= price.spot_median_usd_per_hour


def test_rows_of_early_source_files_are_old_and_no_others() -> None:
    for price in all_prices():
        assert price.is_old == ("catalogs/v5/" in price.source or "catalogs/v6/" in price.source)


def test_prices_of_a_gpu_by_alias() -> None:
    found = prices("A10G")
    assert [(price.cloud, price.on_demand_usd_per_hour, price.date) for price in found] == [
        ("aws", 1.006, "2026-09-06")  # g5.xlarge, us-east-1
    ]
    assert found[0].spot_usd_per_hour is None
    assert prices("H100") == prices("H100 SXM")


def test_cheapest_is_the_lowest_price_that_is_not_old() -> None:
    # RTX A5000: 0.34 at runpod in 2024 is old, so Paperspace's 1.42 is the lowest of today.
    assert min(price.on_demand_usd_per_hour for price in prices("RTX A5000")) == 0.34
    cheapest = cheapest_on_demand("RTX A5000")
    assert cheapest is not None
    assert (cheapest.cloud, cheapest.on_demand_usd_per_hour) == ("paperspace", 1.42)


@pytest.mark.parametrize("name", ["V100-PCIE-16GB", "MI300X"])
def test_no_price_of_today_is_none(name: str) -> None:
    # The V100 PCIe has an old row only, the MI300X none at all.
    assert cheapest_on_demand(name) is None
    assert all(price.is_old for price in prices(name))


def test_unknown_gpu_is_refused() -> None:
    for look_up in (prices, cheapest_on_demand):
        with pytest.raises(CatalogError, match="nearest: "):
            look_up("H1000")
