"""Histories in the format of PyTorch's memory visualizer, read by torch's own reader of that format."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from tiny import write_tiny_model
from torch.cuda import _memory_viz

from qbench.memory.allocator.caching import replay
from qbench.memory.allocator.config import AllocatorConfig
from qbench.memory.history.snapshot import snapshot, snapshot_pickle
from qbench.planner.trace import Trace, trace
from qbench.scenario.schema import Point

CONFIGS = [AllocatorConfig(), AllocatorConfig(expandable_segments=True)]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    model = write_tiny_model(tmp_path_factory.mktemp("snapshot") / "tiny", "HuggingFaceTB/SmolLM2-135M")
    return trace(Point.model_validate({"model": model, "precision": "nf4", "train": {"seq_len": 64}}), "cuda")


def largest(entries: list[dict[str, Any]], up: tuple[str, ...], down: tuple[str, ...]) -> int:
    """Return the largest sum of the bytes that come and go with the named actions."""
    live = most = 0
    for entry in entries:
        live += entry["size"] if entry["action"] in up else -entry["size"] if entry["action"] in down else 0
        most = max(most, live)
    return most


@pytest.mark.parametrize("config", CONFIGS, ids=["native", "expandable"])
def test_the_peaks_of_the_trace_are_those_of_the_plan(traced: Trace, config: AllocatorConfig) -> None:
    planned = replay(traced.ledger.events, config).stats
    (entries,) = snapshot(traced.ledger, config)["device_traces"]
    assert largest(entries, ("alloc",), ("free_completed",)) == planned.peak_allocated_bytes
    taken, given = ("segment_alloc", "segment_map"), ("segment_free", "segment_unmap")
    assert largest(entries, taken, given) == planned.peak_reserved_bytes


def test_the_peaks_are_those_of_the_record(traced: Trace) -> None:
    (entries,) = snapshot(traced.ledger, AllocatorConfig())["device_traces"]
    assert largest(entries, ("alloc",), ("free_completed",)) == traced.memory.peak_bytes
    assert largest(entries, ("segment_alloc",), ("segment_free",)) == traced.reserved_bytes


@pytest.mark.parametrize("config", CONFIGS, ids=["native", "expandable"])
def test_torch_reads_the_file(traced: Trace, config: AllocatorConfig) -> None:
    data = pickle.loads(snapshot_pickle(traced.ledger, config))
    for plot in (_memory_viz.trace_plot, _memory_viz.segment_plot):
        assert "snapshot.pickle" in plot(data)
    # These walk through every block, and raise where bytes do not add up.
    reserved = sum(segment["total_size"] for segment in data["segments"])
    assert f"total_reserved: {_memory_viz.Bytes(reserved)}" in _memory_viz.segsum(data)
    assert "active_allocated" in _memory_viz.segments(data, format_flamegraph=str)
    assert "TOTAL MEM" in _memory_viz.trace(data)


def test_filtered_for_what_is_never_freed_only_that_is_left(traced: Trace) -> None:
    data = snapshot(traced.ledger, AllocatorConfig())
    live = [block for segment in data["segments"] for block in segment["blocks"] if block["requested_size"]]
    (left,) = _memory_viz.filter_alloc_free_pairs(data)["device_traces"]
    # Addresses are used again, so the filter drops the pairs by address.
    assert len([entry for entry in left if entry["action"] == "alloc"]) == len(live)


def test_no_two_live_blocks_overlap(traced: Trace) -> None:
    live: dict[int, int] = {}
    (entries,) = snapshot(traced.ledger, AllocatorConfig())["device_traces"]
    for entry in entries[:3000]:
        if entry["action"] == "alloc":
            begin, end = entry["addr"], entry["addr"] + entry["size"]
            assert not [at for at, size in live.items() if at < end and begin < at + size]
            live[begin] = entry["size"]
        elif entry["action"] == "free_completed":
            del live[entry["addr"]]


def test_frames_tell_operator_module_and_phase(traced: Trace) -> None:
    (entries,) = snapshot(traced.ledger, AllocatorConfig())["device_traces"]
    found = next(
        entry
        for entry in entries
        if entry["action"] == "alloc" and entry["frames"][0]["name"] == "aten.mm.default"
    )
    operator, module, phase = found["frames"]
    assert operator["filename"] == module["name"]
    assert "base_model.model" in module["name"]
    assert phase["name"] == found["user_metadata"] in {"forward", "loss", "backward"}
    assert {entry["category"] for entry in entries if "category" in entry} >= {"weights", "activations"}


def test_addresses_are_exact_as_floating_point_numbers(traced: Trace) -> None:
    (entries,) = snapshot(traced.ledger, AllocatorConfig())["device_traces"]
    assert all(0 < entry["addr"] < 2**53 for entry in entries)


def test_the_settings_of_the_allocator_are_told(traced: Trace, tmp_path: Path) -> None:
    config = AllocatorConfig.from_env_text("expandable_segments:True,max_split_size_mb:128")
    settings = snapshot(traced.ledger, config)["allocator_settings"]
    assert settings["expandable_segments"] is True
    assert settings["max_split_size"] == 128 * 2**20
