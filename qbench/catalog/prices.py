"""What one GPU costs to rent for an hour, by cloud: an order of magnitude, not an offer."""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass

from qbench.catalog.gpus import find_gpu
from qbench.catalog.names import DATA


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Prices of one GPU at one cloud from one source: instance price divided by its GPUs, host included."""

    gpu: str
    """Name of the catalog GPU."""
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
    """Sizes of the instances behind the prices: an (8,) cannot be had as one GPU."""
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
    """Return the lowest on-demand price of a GPU that is not old, or None when there is none.

    Raises CatalogError when the GPU is not in the catalog.
    """
    current = [price for price in prices(gpu_name) if not price.is_old]
    return min(current, key=lambda price: price.on_demand_usd_per_hour, default=None)


@functools.cache
def all_prices() -> tuple[Price, ...]:
    """Return every price of the catalog."""
    with (DATA / "gpu_prices.csv").open(encoding="utf-8", newline="") as lines:
        return tuple(_price(row) for row in csv.DictReader(lines))


def _price(row: dict[str, str]) -> Price:
    return Price(
        gpu=row["gpu"],
        cloud=row["cloud"],
        on_demand_usd_per_hour=float(row["on_demand_usd_per_hour"]),
        on_demand_median_usd_per_hour=float(row["on_demand_median_usd_per_hour"]),
        spot_usd_per_hour=_optional(row["spot_usd_per_hour"]),
        spot_median_usd_per_hour=_optional(row["spot_median_usd_per_hour"]),
        gpus_per_instance=tuple(int(count) for count in row["gpus_per_instance"].split()),
        source=row["source"],
        date=row["date"],
        is_old=row["old"] == "yes",
        notes=row["notes"],
    )


def _optional(text: str) -> float | None:
    return float(text) if text else None
