"""Readings and counters of a stand-in for the driver, whole card and MIG device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from qbench.measure.monitor import POLICIES, NvmlMonitor, growth

UNITS = {"power_w": 300.5, "sm_clock_mhz": 1410, "memory_clock_mhz": 1593, "temperature_c": 61}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what the driver answers by function; what is not there, it does not know."""
    clocks = {pynvml.NVML_CLOCK_SM: 1410, pynvml.NVML_CLOCK_MEM: 1593}
    known: dict[str, Any] = {
        "nvmlDeviceGetMemoryInfo": lambda device, version=None: SimpleNamespace(used=5, total=9),
        "nvmlDeviceGetPowerUsage": lambda card: 300_500,  # mW
        "nvmlDeviceGetClockInfo": lambda card, clock: clocks[clock],
        "nvmlDeviceGetTemperature": lambda card, sensor: 61,
        "nvmlDeviceGetTotalEnergyConsumption": lambda card: 12_500,  # mJ
        "nvmlDeviceGetViolationStatus": lambda card, policy: SimpleNamespace(
            violationTime=(policy + 1) * 10**9, referenceTime=0
        ),
        # nvml.h: 0x4 is SwPowerCap, 0x40 HwThermalSlowdown.
        "nvmlDeviceGetCurrentClocksEventReasons": lambda card: 0x44,
    }
    asked = {name for name in dir(pynvml) if name.startswith("nvmlDeviceGet")}
    for name in asked:
        monkeypatch.setattr(pynvml, name, answering(known, name))
    return known


def answering(known: dict[str, Any], name: str) -> Any:
    def answer(*arguments: Any) -> Any:
        if name not in known:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return known[name](*arguments)

    return answer


def test_readings_are_in_their_units(answers: dict[str, Any]):
    assert NvmlMonitor("card").readings() == {"memory_used_bytes": 5, **UNITS}


def test_what_holds_the_clocks_is_named(answers: dict[str, Any]):
    assert NvmlMonitor("card").event_reasons() == ["sw_power_cap", "hw_thermal"]
    # Drivers before R535 know the old name of the question alone.
    answers["nvmlDeviceGetCurrentClocksThrottleReasons"] = answers.pop(
        "nvmlDeviceGetCurrentClocksEventReasons"
    )
    assert NvmlMonitor("card").event_reasons() == ["sw_power_cap", "hw_thermal"]


def test_counters_are_in_joules_and_seconds(answers: dict[str, Any]):
    # nvml.h: power is policy 0, thermal 1, sync boost 2, board limit 3, reliability 5.
    assert NvmlMonitor("card").counters() == {
        "energy_j": 12.5,
        "throttled_power_s": 1.0,
        "throttled_thermal_s": 2.0,
        "throttled_sync_boost_s": 3.0,
        "throttled_board_limit_s": 4.0,
        "throttled_reliability_s": 6.0,
    }


def test_what_the_driver_does_not_say_is_absent(answers: dict[str, Any]):
    answers.clear()
    monitor = NvmlMonitor("card")
    assert set(monitor.readings().values()) == {None}
    assert set(monitor.counters().values()) == {None}
    assert len(monitor.counters()) == 1 + len(POLICIES)
    assert monitor.event_reasons() == []


def test_power_and_energy_of_a_card_shared_by_mig_are_nobodys(answers: dict[str, Any]):
    asked: list[tuple[str, str]] = []
    answers["nvmlDeviceGetDeviceHandleFromMigDeviceHandle"] = lambda device: "the card"
    answers["nvmlDeviceGetTemperature"] = lambda device, sensor: asked.append(("temperature", device)) or 61
    answers["nvmlDeviceGetMemoryInfo"] = lambda device, version=None: (
        asked.append(("memory", device)) or SimpleNamespace(used=5)
    )
    monitor = NvmlMonitor("mig")
    readings = monitor.readings()
    assert readings == {"memory_used_bytes": 5, **UNITS, "power_w": None}
    assert monitor.counters()["energy_j"] is None
    assert asked == [("memory", "mig"), ("temperature", "the card")]


def test_growth_of_counters():
    before = {"energy_j": 10.0, "a": 1.0, "b": None, "c": 3.0, "d": 0.0}
    after = {"energy_j": 12.5, "a": None, "b": 2.0, "c": 1.0, "d": 0.0}
    # c ran backwards: the driver was loaded anew.
    assert growth(before, after) == {"energy_j": 2.5, "a": None, "b": None, "c": None, "d": 0.0}
