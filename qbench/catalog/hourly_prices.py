"""What an hour of each GPU costs: the catalog's lowest prices, or those of a file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from qbench.catalog.cloud_catalogs import Offer, offers_of
from qbench.catalog.gpus import find_gpu
from qbench.catalog.prices import Price, cheapest_on_demand, prices
from qbench.errors import CatalogError
from qbench.files import read_text

COLUMNS = ("gpu", "usd_per_hour", "spot_usd_per_hour", "currency", "source", "date")
"""Columns of a price file; the first two are required."""


class PriceSource(NamedTuple):
    """Who charges a price, and since when."""

    seller: str
    date: str
    """As its source has it; empty where that has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HourlyPrice:
    """What an hour of a GPU costs, and who says so."""

    on_demand_usd_per_hour: float | None
    spot_usd_per_hour: float | None
    on_demand_from: PriceSource | None
    """Source of the on-demand price."""
    spot_from: PriceSource | None
    """The same of the spot price."""


def catalog_hourly_prices(gpu_names: Iterable[str]) -> dict[str, HourlyPrice]:
    """Return the lowest on-demand and spot price of each GPU that are not old, where there are any."""
    found = {name: _cheapest(name) for name in gpu_names}
    return {name: price for name, price in found.items() if price is not None}


def _cheapest(gpu_name: str) -> HourlyPrice | None:
    demand, spot = cheapest_on_demand(gpu_name), _cheapest_spot(gpu_name)
    if demand is None and spot is None:
        return None
    return HourlyPrice(
        on_demand_usd_per_hour=None if demand is None else demand.on_demand_usd_per_hour,
        spot_usd_per_hour=None if spot is None else spot.spot_usd_per_hour,
        on_demand_from=None if demand is None else _source(demand),
        spot_from=None if spot is None else _source(spot),
    )


def _cheapest_spot(gpu_name: str) -> Price | None:
    offers = [
        (price.spot_usd_per_hour, number, price)
        for number, price in enumerate(prices(gpu_name))
        if price.spot_usd_per_hour is not None and not price.is_old
    ]
    return min(offers)[2] if offers else None


def _source(price: Price) -> PriceSource:
    return PriceSource(price.cloud, price.date)


def read_hourly_prices(file: Path) -> dict[str, HourlyPrice]:
    """Return the prices of a CSV file by the catalog's name of the GPU, in USD an hour.

    The file is one of COLUMNS, or a price list of SkyPilot or dstack, of which the lowest prices are taken.
    Raises CatalogError for the first line that is no price.
    """
    try:
        with io.StringIO(read_text(file), newline="") as lines:
            rows = csv.DictReader(lines)
            offers = offers_of(rows.fieldnames or ())
            found: dict[str, HourlyPrice] = {}
            if offers is not None:
                found = _lowest(chain.from_iterable(map(offers, rows)), PriceSource(file.name, ""))
            else:
                _check_columns(file, rows.fieldnames)
            for row in rows:
                name, price = _row(f"{file}:{rows.line_num}", file, row)
                if name in found:
                    raise CatalogError(f"{file}:{rows.line_num}: {name} is priced twice; keep one line")
                found[name] = price
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "it is not CSV in UTF-8"
        raise CatalogError(f"--prices: {file} cannot be read ({reason}); name a CSV file") from error
    if not found:
        raise CatalogError(
            f"{file}: no prices in it; write a line for each GPU below {','.join(COLUMNS[:2])}"
        )
    return found


def _lowest(offers: Iterable[Offer], source: PriceSource) -> dict[str, HourlyPrice]:
    """Return the lowest price of each GPU, on demand and spot."""
    demand: dict[str, float] = {}
    spot: dict[str, float] = {}
    for offer in offers:
        for amounts, amount in ((demand, offer.on_demand), (spot, offer.spot)):
            if amount is not None:
                amounts[offer.gpu] = min(amount, amounts.get(offer.gpu, amount))
    return {
        gpu: HourlyPrice(
            on_demand_usd_per_hour=demand.get(gpu),
            spot_usd_per_hour=spot.get(gpu),
            on_demand_from=source if gpu in demand else None,
            spot_from=source if gpu in spot else None,
        )
        for gpu in {**demand, **spot}
    }


def _check_columns(file: Path, names: Iterable[str] | None) -> None:
    given = list(names or ())
    unknown = [name for name in given if name not in COLUMNS]
    if unknown or not set(COLUMNS[:2]) <= set(given):
        raise CatalogError(
            f"{file}:1: given the columns {','.join(map(str, given)) or 'none'}; "
            f"allowed: {','.join(COLUMNS)}, the first two required"
        )


def _row(where: str, file: Path, row: Mapping[str | None, str | None]) -> tuple[str, HourlyPrice]:
    """Return GPU and price of one line; `where` names it."""
    values = {name: (row.get(name) or "").strip() for name in COLUMNS}
    if None in row:
        raise CatalogError(f"{where}: more values than columns; write one value per column")
    if values["currency"] not in ("", "USD"):
        raise CatalogError(
            f"{where}: currency given {values['currency']!r}; allowed: USD; convert the prices"
        )
    try:
        name = find_gpu(values["gpu"]).name
    except CatalogError as error:
        raise CatalogError(f"{where}: {error}") from error
    if not values["usd_per_hour"]:
        raise CatalogError(f"{where}: {name} has no usd_per_hour; give its price, or leave the line out")
    source = PriceSource(values["source"] or file.name, values["date"])
    return name, HourlyPrice(
        on_demand_usd_per_hour=_amount(where, "usd_per_hour", values["usd_per_hour"]),
        spot_usd_per_hour=_optional(where, values["spot_usd_per_hour"]),
        on_demand_from=source,
        spot_from=source if values["spot_usd_per_hour"] else None,
    )


def _optional(where: str, text: str) -> float | None:
    return _amount(where, "spot_usd_per_hour", text) if text else None


def _amount(where: str, column: str, text: str) -> float:
    try:
        amount = float(text)
    except ValueError:
        amount = math.nan
    if not 0 <= amount < math.inf:
        raise CatalogError(f"{where}: {column} given {text!r}; allowed: US dollars from 0, for example 1.89")
    return amount
