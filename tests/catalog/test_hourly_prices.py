"""Prices of an hour: the catalog's, and those of a file with every mistake that a file can have."""

from __future__ import annotations

from pathlib import Path

import pytest

from qbench.catalog.hourly_prices import catalog_hourly_prices, read_hourly_prices
from qbench.catalog.prices import prices
from qbench.errors import CatalogError


def test_the_lowest_prices_that_are_not_old_are_taken():
    offers = [price for price in prices("A100-SXM4-80GB") if not price.is_old]
    rate = catalog_hourly_prices(["A100-SXM4-80GB"])["A100-SXM4-80GB"]
    assert rate.on_demand_usd_per_hour == min(price.on_demand_usd_per_hour for price in offers)
    assert rate.spot_usd_per_hour == min(
        price.spot_usd_per_hour for price in offers if price.spot_usd_per_hour
    )
    assert rate.on_demand_from in [(price.cloud, price.date) for price in offers]


def test_a_card_without_a_price_has_no_rate():
    assert catalog_hourly_prices(["RTX 2080 Ti"]) == {}


def test_a_file_is_read(tmp_path: Path):
    file = tmp_path / "mine.csv"
    file.write_text(
        "gpu,usd_per_hour,spot_usd_per_hour,currency,source,date\nRTX 4090,0.5,,USD,me,2026-11-01\n"
    )
    (rate,) = read_hourly_prices(file).values()
    assert (rate.on_demand_usd_per_hour, rate.spot_usd_per_hour) == (0.5, None)
    assert (rate.on_demand_from, rate.spot_from) == (("me", "2026-11-01"), None)


def test_a_card_may_cost_nothing(tmp_path: Path):
    (tmp_path / "own.csv").write_text("gpu,usd_per_hour\nRTX 4090,0\n")
    (rate,) = read_hourly_prices(tmp_path / "own.csv").values()
    assert rate.on_demand_usd_per_hour == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "gpu,usd_per_hour\nRTX 4090,-1\n",
            "mine.csv:2: usd_per_hour given '-1'; allowed: US dollars from 0",
        ),
        ("gpu,usd_per_hour\nRTX 4090,nan\n", "given 'nan'"),
        ("gpu,usd_per_hour\nRTX 4090,cheap\n", "given 'cheap'"),
        ("gpu,usd_per_hour\nRTX 4090,\n", "RTX 4090 has no usd_per_hour"),
        ("gpu,usd_per_hour\nRTX 4090\n", "RTX 4090 has no usd_per_hour"),
        ("gpu,usd_per_hour\nRTX 4090,1,2\n", "more values than columns"),
        ("gpu,usd_per_hour\nRTX 9999,1\n", "mine.csv:2: GPU 'RTX 9999' is not in the catalog"),
        ("gpu,usd_per_hour\nRTX 4090,1\nrtx 4090,2\n", "mine.csv:3: RTX 4090 is priced twice"),
        ("gpu,usd_per_hour,currency\nRTX 4090,1,EUR\n", "currency given 'EUR'; allowed: USD"),
        ("gpu,usd_per_hour,spot_usd_per_hour\nRTX 4090,1,-2\n", "spot_usd_per_hour given '-2'"),
        ("gpu,price\nRTX 4090,1\n", "given the columns gpu,price; allowed: gpu,usd_per_hour"),
        ("gpu,usd_per_hour\n", "no prices in it"),
        ("", "given the columns none"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path: Path, content: str, message: str):
    file = tmp_path / "mine.csv"
    file.write_text(content)
    with pytest.raises(CatalogError, match=r"^[^\n]+$") as raised:
        read_hourly_prices(file)
    assert message in str(raised.value)


def test_a_missing_file_is_told(tmp_path: Path):
    with pytest.raises(CatalogError, match=r"--prices: .* cannot be read"):
        read_hourly_prices(tmp_path / "none.csv")
