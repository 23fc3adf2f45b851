"""What a GPU says of itself while it works: readings of the moment, and counters that miss nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pynvml

from qbench.measure import nvml

POLICIES = {
    "power": "NVML_PERF_POLICY_POWER",
    "thermal": "NVML_PERF_POLICY_THERMAL",
    "sync_boost": "NVML_PERF_POLICY_SYNC_BOOST",
    "board_limit": "NVML_PERF_POLICY_BOARD_LIMIT",
    "reliability": "NVML_PERF_POLICY_RELIABILITY",
}
"""Why a driver holds clocks down, and its name for the count of how long it did."""

EVENT_REASONS = {
    "gpu_idle": "nvmlClocksEventReasonGpuIdle",
    "applications_clocks": "nvmlClocksEventReasonApplicationsClocksSetting",
    "sw_power_cap": "nvmlClocksEventReasonSwPowerCap",
    "hw_slowdown": "nvmlClocksThrottleReasonHwSlowdown",
    "sync_boost": "nvmlClocksEventReasonSyncBoost",
    "sw_thermal": "nvmlClocksEventReasonSwThermalSlowdown",
    "hw_thermal": "nvmlClocksThrottleReasonHwThermalSlowdown",
    "hw_power_brake": "nvmlClocksThrottleReasonHwPowerBrakeSlowdown",
}
"""Bits of what holds the clocks at the moment."""


class NvmlMonitor:
    """A device of the NVIDIA driver. A MIG device has memory of its own; the rest is its whole card's.

    Power and energy of a card that is shared by MIG cannot be attributed to a device, so they are unknown.
    """

    def __init__(self, handle: Any) -> None:
        self._device = handle
        self._card = nvml.whole_card(handle)
        self._is_shared = self._card is not handle

    def readings(self) -> dict[str, float | None]:
        """Return memory_used_bytes, power_w, sm_clock_mhz, memory_clock_mhz and temperature_c of now."""
        power = None if self._is_shared else nvml.asked("nvmlDeviceGetPowerUsage", self._card)
        return {
            "memory_used_bytes": nvml.used_bytes(self._device),
            "power_w": None if power is None else power / 1e3,
            "sm_clock_mhz": nvml.asked("nvmlDeviceGetClockInfo", self._card, pynvml.NVML_CLOCK_SM),
            "memory_clock_mhz": nvml.asked("nvmlDeviceGetClockInfo", self._card, pynvml.NVML_CLOCK_MEM),
            "temperature_c": nvml.asked("nvmlDeviceGetTemperature", self._card, pynvml.NVML_TEMPERATURE_GPU),
        }

    def event_reasons(self) -> list[str]:
        """Return why the clocks are where they are, in the words of EVENT_REASONS."""
        bits = nvml.asked("nvmlDeviceGetCurrentClocksEventReasons", self._card)
        if bits is None:
            bits = nvml.asked("nvmlDeviceGetCurrentClocksThrottleReasons", self._card, default=0)
        return [name for name, constant in EVENT_REASONS.items() if bits & getattr(pynvml, constant, 0)]

    def counters(self) -> dict[str, float | None]:
        """Return energy_j and throttled_NAME_s of each of POLICIES, counted since the driver was loaded."""
        energy = None if self._is_shared else nvml.asked("nvmlDeviceGetTotalEnergyConsumption", self._card)
        throttled = {f"throttled_{name}_s": self._throttled_s(name) for name in POLICIES}
        return {"energy_j": None if energy is None else energy / 1e3, **throttled}

    def _throttled_s(self, name: str) -> float | None:
        policy = getattr(pynvml, POLICIES[name])
        status = nvml.asked("nvmlDeviceGetViolationStatus", self._card, policy)
        return None if status is None else status.violationTime / 1e9


@contextlib.contextmanager
def nvml_monitor() -> Iterator[NvmlMonitor | None]:
    """Yield the chosen device, None where there is no driver or device."""
    with nvml.device() as handle:
        yield None if handle is None else NvmlMonitor(handle)


def growth(before: dict[str, float | None], after: dict[str, float | None]) -> dict[str, float | None]:
    """Return by how much each counter grew; None for one that is unknown at either end or ran backwards."""
    grown: dict[str, float | None] = {}
    for name, start in before.items():
        end = after.get(name)
        grown[name] = None if start is None or end is None or end < start else end - start
    return grown
