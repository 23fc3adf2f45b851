"""What the NVIDIA driver says, through NVML. What it does not know is None, never a number."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pynvml

from qbench.errors import MeasureError
from qbench.records.parts import Environment

_visible: str | None = None
"""CUDA_VISIBLE_DEVICES before a device was pinned."""
_NUMBER = re.compile(r"\s*\+?(\d+)")
_PARTITION = re.compile(r"MIG-(GPU-[^/]+)/(\d+)/(\d+)")
"""A MIG device as drivers before R470 name it: its card, GPU instance and compute instance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedDevice:
    """The device that is measured."""

    uuid: str | None
    """UUID of the card, or of the MIG device on it; None if there is none."""
    note: str | None
    """Why it may not be the one that was meant; None when that is clear."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CardState:
    """Memory and processes of the device at one instant."""

    used_bytes: int | None = None
    """In use on the device by all processes, as nvidia-smi shows it."""
    own_bytes: int | None = None
    """In use by this process; None where the driver does not list it under its own id."""
    pids: tuple[int, ...] | None = None
    """Ids of the processes that compute on the device, as the driver knows them."""

    def foreign(self, before: CardState | None = None) -> list[int] | None:
        """Return the process ids other than this one's; None if unavailable.

        `before` is the card before CUDA started in this process, and says that it must be listed now. In a
        container the driver may show the host's ids: then a single one on a card that had none is this
        process's, unless it is that of another process here, and of several none can be told apart from it,
        so that the answer is None.
        """
        if self.pids is None:
            return None
        if before is None or os.getpid() in self.pids:
            return [pid for pid in self.pids if pid != os.getpid()]
        if self.is_taken_since(before):
            return []
        return list(self.pids) if self.pids and all(map(_runs_here, self.pids)) else None

    def is_taken_since(self, before: CardState) -> bool:
        """Say whether the one process that is listed now, and none was before, is this one."""
        alone = before.pids == () and self.pids is not None and len(self.pids) == 1
        return alone and not any(pid != os.getpid() and _runs_here(pid) for pid in self.pids or ())


def _runs_here(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


@contextlib.contextmanager
def device() -> Iterator[Any]:
    """Yield the NVML handle of the chosen device, or None where there is no driver or device."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield _handle(_chosen())
    finally:
        pynvml.nvmlShutdown()


def _chosen() -> str | int | None:
    """Return the first device that CUDA shows, by its id or number; None where it shows none.

    CUDA reads a number as strtoul does, so that 1gpu is 1, and shows nothing where a device is named twice
    (torch/cuda/__init__.py, `_parse_visible_devices`).
    """
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")]
    if names[0].startswith(("GPU-", "MIG-")):
        return names[0] if names.count(names[0]) == 1 else None
    numbers = [_NUMBER.match(name) for name in names]
    known = [int(number[1]) for number in itertools.takewhile(bool, numbers) if number]
    return known[0] if known and len(set(known)) == len(known) else None


def _handle(chosen: str | int | None) -> Any:
    if chosen is None:
        return None
    try:
        if isinstance(chosen, int):
            return _first_mig_device(pynvml.nvmlDeviceGetHandleByIndex(chosen))
        if chosen.startswith("MIG-"):
            return _partition(chosen)
        card = _card_by_uuid(chosen)
        return None if card is None else _first_mig_device(card)
    except (pynvml.NVMLError, ValueError, OverflowError):
        return None


def _partition(name: str) -> Any:
    """Return the MIG device of a name; None where its card has no such instances."""
    parts = _PARTITION.fullmatch(name)
    if parts is None:
        return pynvml.nvmlDeviceGetHandleByUUID(name)
    card = _card_by_uuid(parts[1])
    instances = int(parts[2]), int(parts[3])
    return next((found for found in _mig_devices(card) if _instances(found) == instances), None)


def _instances(partition: Any) -> tuple[Any, Any]:
    return asked("nvmlDeviceGetGpuInstanceId", partition), asked("nvmlDeviceGetComputeInstanceId", partition)


def _card_by_uuid(start: str) -> Any:
    """Return the card whose UUID begins so, since CUDA lets it be cut short; None unless it is one."""
    with contextlib.suppress(pynvml.NVMLError, ValueError):
        return pynvml.nvmlDeviceGetHandleByUUID(start)
    cards = [card for card in _cards() if _text(pynvml.nvmlDeviceGetUUID(card)).startswith(start)]
    return cards[0] if len(cards) == 1 else None


def _cards() -> list[Any]:
    return [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]


def _first_mig_device(card: Any) -> Any:
    """Return the card, or the first device on it where it is split by MIG; None where it has none yet."""
    if asked("nvmlDeviceGetMigMode", card, default=(0, 0))[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        return card
    return next(_mig_devices(card), None)


def _mig_devices(card: Any) -> Iterator[Any]:
    for number in range(asked("nvmlDeviceGetMaxMigDeviceCount", card, default=0)):
        found = asked("nvmlDeviceGetMigDeviceHandleByIndex", card, number)
        if found is not None:
            yield found


def whole_card(handle: Any) -> Any:
    """Return the card that a MIG device is on, or the handle itself where it is a card."""
    return asked("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", handle, default=handle)


def asked(function: str, *arguments: Any, default: Any = None) -> Any:
    """Return what a function of NVML answers; `default` where driver, card or bindings do not know it."""
    try:
        return getattr(pynvml, function)(*arguments)
    except (pynvml.NVMLError, AttributeError):
        return default


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def cuda_present() -> bool:
    """Say whether the driver shows a device; CUDA itself is not initialised."""
    with device() as handle:
        return handle is not None


def why_absent() -> str:
    """Return why the driver shows no device."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"the NVIDIA driver does not answer ({error})"
    pynvml.nvmlShutdown()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return f"CUDA_VISIBLE_DEVICES={visible} shows no GPU"
    return "the NVIDIA driver shows no GPU here"


def choose_device() -> PinnedDevice:
    """Return the first device that CUDA_VISIBLE_DEVICES allows, with what is unclear about it.

    A number counts as nvidia-smi counts, by PCI bus; CUDA alone would count the fastest card first.
    """
    with device() as handle:
        uuid = None if handle is None else asked("nvmlDeviceGetUUID", handle)
        note = None if handle is None else _note(os.environ.get("CUDA_VISIBLE_DEVICES"))
    return PinnedDevice(uuid=None if uuid is None else _text(uuid), note=note)


def _note(visible: str | None) -> str | None:
    number = (visible or "").split(",")[0].strip()
    by_bus = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    if not number.isdecimal() or by_bus or asked("nvmlDeviceGetCount", default=0) < 2:
        return None
    return (
        f"CUDA_VISIBLE_DEVICES={visible} is counted by PCI bus, as nvidia-smi does; CUDA counts the fastest "
        "card first; set CUDA_DEVICE_ORDER=PCI_BUS_ID or name the card by its UUID"
    )


@functools.cache
def pin_device() -> PinnedDevice:
    """Show CUDA the chosen device alone, by its UUID, before CUDA starts in this process; return it."""
    global _visible
    choice, _visible = choose_device(), os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if choice.uuid is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = choice.uuid
    return choice


def visible_devices(count: int) -> list[str]:
    """Return how CUDA_VISIBLE_DEVICES named the first devices, before one was pinned.

    Raises MeasureError where it shows fewer.
    """
    with device():
        present = asked("nvmlDeviceGetCount", default=0)
    names = list(map(str, range(present))) if _visible is None else _visible.split(",")
    if len(names) < count:
        raise MeasureError(f"the point needs {count} GPUs; CUDA shows {len(names)} here")
    return [name.strip() for name in names[:count]]


def pin_device_of(visible: str) -> PinnedDevice:
    """Do the same for what a value of CUDA_VISIBLE_DEVICES shows, whatever was pinned before."""
    os.environ["CUDA_VISIBLE_DEVICES"] = visible
    pin_device.cache_clear()
    return pin_device()


def describe_device() -> Environment:
    """Return device_name, device_id, device_memory_bytes and driver; None where the driver is silent.

    The id tells two cards apart but identifies none, since records are shared.
    """
    unknown: Environment = {
        "device_name": None,
        "device_id": None,
        "device_memory_bytes": None,
        "driver": None,
    }
    with device() as handle:
        if handle is None:
            return unknown
        try:
            return {
                "device_name": _text(pynvml.nvmlDeviceGetName(handle)),
                "device_id": _anonymous(_text(pynvml.nvmlDeviceGetUUID(handle))),
                "device_memory_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                "driver": _text(pynvml.nvmlSystemGetDriverVersion()),
            }
        except pynvml.NVMLError:
            return unknown


def _anonymous(uuid: str) -> str:
    return hashlib.sha256(uuid.encode()).hexdigest()[:8]


def card_state() -> CardState:
    """Return what is in use on the device and by whom; None for each thing that the driver keeps back."""
    with device() as handle:
        if handle is None:
            return CardState()
        running = asked("nvmlDeviceGetComputeRunningProcesses", handle)
        used = used_bytes(handle)
    if running is None:
        return CardState(used_bytes=used)
    own = next((process.usedGpuMemory for process in running if process.pid == os.getpid()), None)
    return CardState(
        used_bytes=used,
        own_bytes=None if own is None else int(own),
        pids=tuple(int(process.pid) for process in running),
    )


def used_bytes(handle: Any) -> int | None:
    """Return the bytes in use on a device by all processes, without those that the driver keeps for itself.

    Drivers before R510 know only the older form of the question, which counts the driver's own as used.
    """
    info = asked("nvmlDeviceGetMemoryInfo", handle, getattr(pynvml, "nvmlMemory_v2", None))
    info = info or asked("nvmlDeviceGetMemoryInfo", handle)
    return None if info is None else int(info.used)
