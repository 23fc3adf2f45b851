"""NVML as seen through a stand-in for the driver, which this must work without as well as with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from qbench.measure import nvml
from qbench.measure.executors.ray import _on_gpus
from qbench.measure.nvml import CardState

UUIDS = ["GPU-aaaa", "GPU-bbbb"]
MIG_UUID = "MIG-cccc"
ANSWERS = (
    "nvmlDeviceGetHandleByUUID",
    "nvmlDeviceGetName",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetMaxMigDeviceCount",
    "nvmlDeviceGetMigDeviceHandleByIndex",
    "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetGpuInstanceId",
    "nvmlDeviceGetComputeInstanceId",
)


class Driver:
    """Two cards, the processes that compute on the first, and whether anything answers at all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.running: dict[int, int | None] = {}
        self.silent = False
        self.split_by_mig = False
        self.knows_v2 = True
        monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
        monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: len(UUIDS))
        monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: "580.1")
        monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", self.by_index)
        for name in ANSWERS:
            monkeypatch.setattr(pynvml, name, self.answer(getattr(self, name)))

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

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any:
        return "mig" if uuid == MIG_UUID else UUIDS.index(uuid)

    def nvmlDeviceGetName(self, card: Any) -> str:
        return f"card {card}"

    def nvmlDeviceGetUUID(self, card: Any) -> str:
        return MIG_UUID if card == "mig" else UUIDS[card]

    def nvmlDeviceGetMemoryInfo(self, card: Any, version: int | None = None) -> Any:
        if version is not None and not self.knows_v2:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        # The driver's own 0.5 GiB are used in the old form and apart in the new one.
        return SimpleNamespace(total=24 << 30, used=(1 << 30) + (0 if version else 512 << 20))

    def nvmlDeviceGetMigMode(self, card: Any) -> list[int]:
        return [int(self.split_by_mig), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, card: Any) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: Any, number: int) -> str:
        if number != 2:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return "mig"

    def nvmlDeviceGetGpuInstanceId(self, partition: Any) -> int:
        return 7

    def nvmlDeviceGetComputeInstanceId(self, partition: Any) -> int:
        return 0

    def nvmlDeviceGetComputeRunningProcesses(self, card: Any) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in self.running.items()]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    # Set first, so that the fixture also takes back what pinning writes.
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    nvml.pin_device.cache_clear()
    yield Driver(monkeypatch)
    nvml.pin_device.cache_clear()


@pytest.mark.parametrize(
    ("visible", "uuid"),
    [
        (None, "GPU-aaaa"),
        ("1", "GPU-bbbb"),
        ("1,0", "GPU-bbbb"),
        ("GPU-bbbb", "GPU-bbbb"),
        ("GPU-b", "GPU-bbbb"),
        ("GPU-", None),  # Either card begins so.
        ("MIG-cccc", "MIG-cccc"),
        ("", None),
        ("-1", None),
        ("-2", None),
        ("7", None),
        ("what", None),
        (" 1 ", "GPU-bbbb"),
        ("+1", "GPU-bbbb"),
        ("01", "GPU-bbbb"),
        ("1gpu0,0", "GPU-bbbb"),  # As strtoul reads it.
        ("1,-1,0", "GPU-bbbb"),
        ("0,0", None),  # A device named twice, for which CUDA shows none.
        ("1, 0,1", None),
        (" GPU-bbbb , GPU-aaaa", "GPU-bbbb"),
        ("GPU-bbbb,GPU-bbbb", None),
        ("MIG-cccc,MIG-dddd", "MIG-cccc"),
        ("MIG-GPU-aaaa/7/0", "MIG-cccc"),  # Drivers before R470 name a part by its instances.
        ("MIG-GPU-aaaa/8/0", None),
        ("NoDevFiles", None),
        (",1", None),
        (str(10**30), None),
    ],
)
def test_the_first_visible_card_is_the_device(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, visible: str | None, uuid: str | None
):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    named = nvml.describe_device()["device_id"]
    assert (named is None) == (uuid is None)
    assert uuid is None or (uuid not in str(nvml.describe_device()) and len(named) == 8)
    assert nvml.choose_device().uuid == uuid
    assert nvml.cuda_present() == (uuid is not None)


def test_ray_pins_the_first_card_of_each_of_its_tasks(driver: Driver):
    """The worker has pinned before, by what its fork server knew; of two cards of a point one is shown."""
    assert nvml.pin_device().uuid == "GPU-aaaa"
    assert _on_gpus("1,0", lambda: os.environ["CUDA_VISIBLE_DEVICES"]) == "GPU-bbbb"
    assert nvml.pin_device().uuid == "GPU-bbbb"
    assert _on_gpus("0,1", lambda: os.environ["CUDA_VISIBLE_DEVICES"]) == "GPU-aaaa"


def test_it_is_said_why_no_device_is_there(driver: Driver, monkeypatch: pytest.MonkeyPatch):
    assert nvml.why_absent() == "the NVIDIA driver shows no GPU here"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,0")
    assert nvml.why_absent() == "CUDA_VISIBLE_DEVICES=0,0 shows no GPU"

    def no_library() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", no_library)
    assert nvml.why_absent() == "the NVIDIA driver does not answer (NVML Shared Library Not Found)"


def test_of_a_card_that_is_split_the_first_part_is_the_device(driver: Driver):
    driver.split_by_mig = True
    assert nvml.choose_device().uuid == MIG_UUID


def test_a_card_that_is_to_be_split_and_has_no_parts_cannot_be_measured(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
):
    driver.split_by_mig = True
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMaxMigDeviceCount", lambda card: 2)
    assert not nvml.cuda_present()


@pytest.mark.parametrize(
    ("visible", "order", "is_unclear"),
    [
        ("1", None, True),
        ("0", "FASTEST_FIRST", True),
        ("1", "PCI_BUS_ID", False),
        ("GPU-bbbb", None, False),
        (None, None, False),
    ],
)
def test_a_number_that_cuda_may_count_otherwise_is_told(
    driver: Driver,
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    order: str | None,
    is_unclear: bool,
):
    for name, value in (("CUDA_VISIBLE_DEVICES", visible), ("CUDA_DEVICE_ORDER", order)):
        if value is not None:
            monkeypatch.setenv(name, value)
    note = nvml.choose_device().note
    assert (note is not None) == is_unclear
    if note:
        assert f"CUDA_VISIBLE_DEVICES={visible}" in note
        assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in note


def test_with_one_card_a_number_is_clear(driver: Driver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert nvml.choose_device().note is None


def test_cuda_is_shown_the_card_by_its_uuid_and_the_doubt_stays_known(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    choice = nvml.pin_device()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-bbbb"
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert choice.note is not None
    assert nvml.pin_device() is choice


def test_a_silent_probe_is_unknown_and_never_a_number(driver: Driver):
    driver.silent = True
    assert nvml.card_state() == CardState(used_bytes=None, own_bytes=None, pids=None)
    assert nvml.card_state().foreign() is None
    assert set(nvml.describe_device().values()) == {None}


def test_without_a_driver_there_is_no_device(monkeypatch: pytest.MonkeyPatch):
    def no_library() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", no_library)
    assert not nvml.cuda_present()
    assert nvml.card_state() == CardState()


def test_what_the_driver_keeps_for_itself_is_not_in_use(driver: Driver):
    assert nvml.card_state().used_bytes == 1 << 30
    driver.knows_v2 = False
    assert nvml.card_state().used_bytes == (1 << 30) + (512 << 20)


def test_the_share_of_this_process_is_the_drivers_figure(driver: Driver):
    driver.running = {4242: 7 << 30, os.getpid(): 3 << 30}
    assert nvml.card_state().own_bytes == 3 << 30
    # Windows and MIG give no figure.
    driver.running = {os.getpid(): None}
    assert nvml.card_state().own_bytes is None


def test_foreign_processes_are_all_but_this_one():
    before = CardState(pids=())
    state = CardState(pids=(os.getpid(), 4242))
    assert state.foreign() == [4242]
    assert state.foreign(before) == [4242]


def test_a_container_that_sees_the_ids_of_its_host_knows_one_as_its_own_at_most():
    one, two, none = (
        CardState(pids=(999_999_999,)),
        CardState(pids=(999_999_998, 999_999_999)),
        CardState(pids=()),
    )
    assert one.foreign(before=none) == []
    assert two.foreign(before=none) is None
    assert two.foreign(before=one) is None
    # This process computes and is not listed: the list is not to be believed.
    assert none.foreign(before=none) is None


def test_a_lone_process_that_runs_here_beside_is_not_taken_for_this_one():
    before, other = CardState(pids=()), CardState(pids=(os.getppid(),))
    assert not other.is_taken_since(before)
    assert other.foreign(before) == [os.getppid()]
