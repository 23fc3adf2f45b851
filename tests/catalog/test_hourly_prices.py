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


def test_a_price_list_of_skypilot_gives_the_lowest_price_of_one_gpu(tmp_path: Path):
    file = tmp_path / "vms.csv"
    file.write_text(
        "InstanceType,vCPUs,MemoryGiB,AcceleratorName,AcceleratorCount,GpuInfo,Region,Price,SpotPrice\n"
        "1L4,8.0,32.0,L4,1.0,,A,0.80,0.30\n"
        "4L4,32.0,128.0,L4,4.0,,A,2.80,\n"
        "8A100,96.0,680.0,A100,8.0,,A,,9.6\n"
        "TPU,96.0,680.0,tpu-v5e-8,8.0,,A,9.0,4.0\n"
        "CPU,4.0,16.0,,,,A,0.1,0.05\n"
    )
    found = read_hourly_prices(file)
    # 2.80 / 4 is less than 0.80; the A100 of SkyPilot has 40 GB and 9.6 / 8.
    assert found["L4"].on_demand_usd_per_hour == pytest.approx(0.70)
    assert found["L4"].spot_usd_per_hour == pytest.approx(0.30)
    assert found["A100-SXM4-40GB"].on_demand_usd_per_hour is None
    assert found["A100-SXM4-40GB"].spot_usd_per_hour == pytest.approx(1.2)
    assert found["L4"].on_demand_from == ("vms.csv", "")
    assert len(found) == 2


def test_a_price_list_of_dstack_tells_cards_by_their_memory(tmp_path: Path):
    file = tmp_path / "gpuhunt.csv"
    file.write_text(
        "instance_name,location,price,cpu,memory,gpu_count,gpu_name,gpu_memory,spot,disk_size\n"
        "a,x,20.0,96,680,8,A100,80,False,\n"
        "a,x,8.0,96,680,8,A100,80,True,\n"
        "b,x,1.5,8,32,1,L40S,48,False,\n"
        "c,x,0.1,8,32,0,,,False,\n"
    )
    found = read_hourly_prices(file)
    assert found["A100-SXM4-80GB"].on_demand_usd_per_hour == pytest.approx(2.5)
    assert found["A100-SXM4-80GB"].spot_usd_per_hour == pytest.approx(1.0)
    assert found["L40S"].on_demand_usd_per_hour == pytest.approx(1.5)


def test_a_price_list_without_a_known_card_says_so(tmp_path: Path):
    file = tmp_path / "vms.csv"
    file.write_text("AcceleratorName,AcceleratorCount,Price\ntpu-v5e,1,3\n")
    with pytest.raises(CatalogError, match="no prices in it"):
        read_hourly_prices(file)
