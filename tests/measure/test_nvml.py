"""NVML as seen through a stand-in for the driver, which this must work without as well as with."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from qbench.measure import nvml

UUIDS = ["GPU-aaaa", "GPU-bbbb"]


class Driver:
    """Two cards, the processes that compute on the first, and whether anything answers at all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.running: list[int] = []
        self.silent = False
        answers: dict[str, Any] = {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetHandleByIndex": self.by_index,
            "nvmlDeviceGetHandleByUUID": UUIDS.index,
            "nvmlDeviceGetName": self.answer(lambda card: f"card {card}"),
            "nvmlDeviceGetUUID": self.answer(lambda card: UUIDS[card]),
            "nvmlDeviceGetMemoryInfo": self.answer(
                lambda card: SimpleNamespace(total=24 << 30, used=1 << 30)
            ),
            "nvmlSystemGetDriverVersion": lambda: "580.1",
            "nvmlDeviceGetComputeRunningProcesses": self.answer(
                lambda card: [SimpleNamespace(pid=pid) for pid in self.running]
            ),
        }
        for name, function in answers.items():
            monkeypatch.setattr(pynvml, name, function)

    def by_index(self, index: int) -> int:
        if index >= len(UUIDS):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return index

    def answer(self, function: Any) -> Any:
        def asked(*args: Any) -> Any:
            if self.silent:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return function(*args)

        return asked


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return Driver(monkeypatch)


@pytest.mark.parametrize(
    ("visible", "uuid"),
    [
        (None, "GPU-aaaa"),
        ("1", "GPU-bbbb"),
        ("1,0", "GPU-bbbb"),
        ("GPU-bbbb", "GPU-bbbb"),
        ("", None),
        ("-1", None),
        ("7", None),
    ],
)
def test_the_first_visible_card_is_the_device(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, visible: str | None, uuid: str | None
):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert nvml.describe_device()["device_uuid"] == uuid
    assert nvml.cuda_present() == (uuid is not None)


def test_a_silent_probe_is_unknown_and_never_a_number(driver: Driver):
    driver.silent = True
    assert nvml.device_used_bytes() is None
    assert nvml.foreign_processes() is None
    assert set(nvml.describe_device().values()) == {None}


def test_without_a_driver_there_is_no_device(monkeypatch: pytest.MonkeyPatch):
    def no_library() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", no_library)
    assert not nvml.cuda_present()
    assert nvml.device_used_bytes() is None


def test_foreign_processes_are_all_but_this_one(driver: Driver):
    driver.running = [os.getpid(), 4242]
    assert nvml.foreign_processes() == [4242]
    assert nvml.foreign_processes(own_is_listed=True) == [4242]


def test_a_container_that_sees_the_ids_of_its_host_cannot_tell_who_is_foreign(driver: Driver):
    driver.running = [999_999_999]
    assert nvml.foreign_processes(own_is_listed=True) is None
