"""Searches of several points: side by side on all cores, with the answers that they have in turn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qbench.catalog.gpus import find_gpu
from qbench.errors import QbenchError, StepError
from qbench.measure import pool
from qbench.runs import sizing
from qbench.runs.sizing import FitFor, fits
from qbench.scenario.expand import point_from
from tests.tiny import write_tiny_model


def test_searches_side_by_side_answer_as_those_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool, "num_cores", lambda: 2)
    base = {"model": write_tiny_model(tmp_path / "tiny", "HuggingFaceTB/SmolLM2-135M")}
    card = replace(find_gpu("RTX 4090"), name="small", memory_bytes=467 << 20)
    settings = {"per_device_train_batch_size": 32}
    points = [point_from(base, settings | {"precision": name}) for name in ("bf16", "nf4")]
    points.append(point_from(base, settings | {"target_modules": ["nowhere"]}))
    told: list[tuple[int, int, str]] = []
    search = FitFor(gpus=(card,), cache=False)
    found, failed = fits(points, search, lambda *said: told.append(said))
    assert told[0] == (1, 3, "bf16 on small")
    assert [answer.value is None or answer.value % 64 for answer in found] == [0, 0]
    assert list(failed) == ["small, bf16"]
    monkeypatch.setattr(sizing, "SEARCHES_WORTH_PROCESSES", 4)
    in_turn, _ = fits(points, search)
    for one, other in zip(found, in_turn, strict=True):
        assert replace(one, record=other.record) == other
        assert one.record.metrics == other.record.metrics
    monkeypatch.undo()
    with pytest.raises(QbenchError, match="--step: given 0"):
        fits(points[:1], replace(search, step=0))
    with pytest.raises(StepError, match="nowhere"):
        fits(points[2:], search)
