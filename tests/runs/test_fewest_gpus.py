from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qbench.catalog.capabilities import context_size
from qbench.catalog.gpus import find_gpu
from qbench.runs import fewest_gpus as module
from qbench.runs.fewest_gpus import fewest_gpus
from qbench.units import MIB
from qbench.words.fewest_gpus import fewest_lines
from tests.tiny import FAMILIES, tiny_point, write_tiny_model


def test_no_more_gpus_are_planned_than_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_GPUS", 2)
    point = tiny_point(write_tiny_model(tmp_path / "llama", FAMILIES["llama"]))
    card = find_gpu("RTX 4090")
    (one,) = fewest_gpus([point], ["ddp"], [card], "", cache=False)
    assert one.gpus == 1
    assert len(one.records) == 1
    # Room for the context and no more than 1 MiB beside it, where a segment alone has 2.
    full = replace(card, memory_bytes=context_size((8, 9)).most + MIB)
    (none,) = fewest_gpus([point], ["ddp"], [full], "", cache=False)
    assert none.gpus is None
    assert [record.point.num_gpus for record in none.records] == [1, 2]
    lines = fewest_lines([(none.gpu, none.gpus, none.records)])
    assert lines[0] == "llama bf16, ddp on RTX 4090: no number of GPUs on one node suffices"
    assert lines[2].startswith("  2 GPUs  ")
