"""What one GPU costs to rent for an hour, by cloud: an order of magnitude, not an offer."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from qbench.catalog.gpus import find_gpu
from qbench.catalog.rows import catalog_rows, optional, yes_or_no


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Prices of one GPU at one cloud from one source: instance price divided by its GPUs, host included."""

    gpu: str
    """Name of the catalog GPU."""
    accelerator: str
    """What the source calls it."""
    cloud: str
    """Who rents it out."""
    on_demand_usd_per_hour: float
    """Lowest on-demand price of one GPU over the source's rows."""
    on_demand_median_usd_per_hour: float
    """Median on-demand price over the source's rows."""
    spot_usd_per_hour: float | None
    """Lowest spot price; None when the source gives none."""
    spot_median_usd_per_hour: float | None
    """Median spot price; None when the source gives none."""
    gpus_per_instance: tuple[int, ...]
    """Sizes of the instances behind the prices: an (8,) is not sold as one GPU."""
    source: str
    """Where the prices come from."""
    date: str
    """Date of the source as text; it says so when the source has none."""
    is_old: bool
    """Whether the source is too old to speak for today."""
    notes: str
    """What a user should know; empty when there is nothing."""


def prices(gpu_name: str) -> tuple[Price, ...]:
    """Return all prices of a GPU, old ones included; empty when the catalog has none.

    Raises CatalogError when the GPU is not in the catalog.
    """
    name = find_gpu(gpu_name).name
    return tuple(price for price in all_prices() if price.gpu == name)


def cheapest_on_demand(gpu_name: str) -> Price | None:
    """Return the lowest on-demand price of a GPU that is not old, or None if there is none.

    Raises CatalogError when the GPU is not in the catalog.
    """
    current = [price for price in prices(gpu_name) if not price.is_old]
    return min(current, key=lambda price: price.on_demand_usd_per_hour, default=None)


@functools.cache
def all_prices() -> tuple[Price, ...]:
    """Return every price of the catalog."""
    return catalog_rows(
        "gpu_prices.csv",
        _price,
        on_demand_usd_per_hour=float,
        on_demand_median_usd_per_hour=float,
        spot_usd_per_hour=optional(float),
        spot_median_usd_per_hour=optional(float),
        gpus_per_instance=lambda counts: tuple(map(int, counts.split())),
        old=yes_or_no,
    )


def _price(old: bool, **known: Any) -> Price:
    return Price(is_old=old, **known)
