"""The history of a plan in the format of PyTorch's memory visualizer (pytorch.org/memory_viz).

The format is that of `torch.cuda.memory._snapshot`, as torch/cuda/_memory_viz.py and torch/utils/viz read it.
Two things differ from a snapshot of a real run: the size of an event is that of its whole block, so that the
timeline's peak is the plan's peak allocated bytes (torch writes the bytes that were asked for, here
`requested_size`); and frames are not those of a stack but tell operator, module and phase.
"""

from __future__ import annotations

import pickle
from typing import Any

from qbench.memory.allocator.blocks import ADDRESS_SPACE, SegmentAction
from qbench.memory.allocator.caching import CachingAllocator, Segment
from qbench.memory.allocator.config import AllocatorConfig
from qbench.memory.history.breakdown import categories
from qbench.memory.history.ledger import Allocation, History, emptied_at

Entry = dict[str, Any]

_SMALL_BASE, _LARGE_BASE = 0x7F00_0000_0000, 0x7F80_0000_0000
"""Where the pools begin: addresses as CUDA hands them out, which JavaScript's numbers hold exactly."""

PICKLE_PROTOCOL = 4
"""The visualizer has a reader of its own for pickles."""


def snapshot_pickle(history: History, config: AllocatorConfig) -> bytes:
    """Return the snapshot of a history as the file that the visualizer opens."""
    return pickle.dumps(snapshot(history, config), protocol=PICKLE_PROTOCOL)


def snapshot(history: History, config: AllocatorConfig) -> dict[str, Any]:
    """Return a history, replayed through the caching allocator, as `torch.cuda.memory._snapshot` would."""
    return _Recorder(history, config).recorded()


class _Recorder:
    """Replays a history and writes down what torch would have."""

    def __init__(self, history: History, config: AllocatorConfig) -> None:
        self._history = history
        self._config = config
        self._categories = categories(history)
        self._phase = ""
        self._trace: list[Entry] = []
        self._live: dict[int, Entry] = {}
        self._allocator = CachingAllocator(config, watch=self._on_segment)

    def recorded(self) -> dict[str, Any]:
        emptied = emptied_at(self._history.marks)
        for event, (handle, num_bytes) in enumerate(self._history.events):
            if event in emptied:
                self._allocator.empty_cache()
            if num_bytes > 0:
                self._malloc(handle, num_bytes)
            else:
                self._free(handle)
        return {
            "segments": [self._segment(segment) for segment in self._allocator.segments()],
            "device_traces": [self._trace],
            "allocator_settings": _settings(self._config),
        }

    def _malloc(self, handle: int, num_bytes: int) -> None:
        allocation = self._history.allocations[handle]
        self._phase = allocation.phase
        address = _address(self._allocator.malloc(handle, num_bytes))
        entry: Entry = {
            "addr": address,
            "size": self._allocator.block_bytes(handle),
            "requested_size": allocation.num_bytes,
            "stream": 0,
            "frames": _frames(allocation),
            "category": self._categories[handle],
        }
        self._live[handle] = entry
        self._note("alloc", entry)

    def _free(self, handle: int) -> None:
        entry = self._live.pop(handle)
        self._allocator.free(handle)
        for action in ("free_requested", "free_completed"):
            self._note(action, entry)

    def _note(self, action: str, entry: Entry) -> None:
        # Plans know no time: events are a microsecond apart.
        number = len(self._trace)
        self._trace.append({"action": action, **entry, "time_us": number, "user_metadata": self._phase})

    def _on_segment(self, action: SegmentAction, address: int, num_bytes: int) -> None:
        frame = {"name": action, "filename": self._phase, "line": 0}
        self._note(action, {"addr": _address(address), "size": num_bytes, "stream": 0, "frames": [frame]})

    def _segment(self, segment: Segment) -> Entry:
        held = {entry["addr"]: entry for entry in self._live.values()}
        blocks = [self._block(held.get(_address(at)), _address(at), size) for at, size, _ in segment.blocks]
        active = sum(block["size"] for block in blocks if block["state"] == "active_allocated")
        return {
            "device": 0,
            "address": _address(segment.address),
            "total_size": sum(block["size"] for block in blocks),
            "allocated_size": active,
            "active_size": active,
            "requested_size": sum(block["requested_size"] for block in blocks),
            "stream": 0,
            "segment_type": "large" if segment.is_large else "small",
            "segment_pool_id": (0, 0),
            "is_expandable": self._config.expandable_segments,
            "frames": [],
            "blocks": blocks,
        }

    def _block(self, entry: Entry | None, address: int, size: int) -> Entry:
        return {
            "address": address,
            "size": size,
            "requested_size": 0 if entry is None else entry["requested_size"],
            "state": "inactive" if entry is None else "active_allocated",
            "frames": [] if entry is None else entry["frames"],
        }


def _address(address: int) -> int:
    in_large = address >= ADDRESS_SPACE
    return address - ADDRESS_SPACE + _LARGE_BASE if in_large else address + _SMALL_BASE


def _frames(allocation: Allocation) -> list[Entry]:
    """Return operator, module and phase as the frames of a stack, the innermost first."""
    places = (
        (allocation.op or "tensor", allocation.module or allocation.phase),
        (allocation.module or "step", allocation.phase),
        (allocation.phase, "qbench plan"),
    )
    return [{"name": name, "filename": filename, "line": 0} for name, filename in places]


def _settings(config: AllocatorConfig) -> dict[str, Any]:
    split, threshold = config.max_split_size_bytes, config.garbage_collection_threshold
    return {
        "expandable_segments": config.expandable_segments,
        "max_split_size": -1 if split is None else split,
        "garbage_collection_threshold": 0.0 if threshold is None else threshold,
    }
