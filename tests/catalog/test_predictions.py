"""What other tools predict: about published peaks, each with its figure or its reason."""

from __future__ import annotations

import re

import pytest

from qbench.catalog.predictions import OtherPrediction, other_predictions
from qbench.catalog.published import published_rows

PUBLISHED = {row.id: row for row in published_rows()}
PEAKS = ("max_allocated", "max_reserved", "max_reserved_first_step")


def test_every_tool_was_asked_about_every_peak_once() -> None:
    asked: dict[str, list[str]] = {}
    for other in other_predictions():
        asked.setdefault(other.tool, []).append(other.id)
    assert list(asked) == ["fitcheck-llm", "canifinetune", "vramcalc", "llm-analysis", "hf-vram-calc"]
    # Five runs on the RTX 4080 with both peaks, one full fine-tuning on the A100, one LoRA run on the L40S;
    # the other three peaks on the A100 are of the same step.
    assert {len(ids) for ids in asked.values()} == {12}
    assert len({tuple(ids) for ids in asked.values()}) == 1
    steps = {(PUBLISHED[row_id].figure, PUBLISHED[row_id].source) for row_id in asked["vramcalc"]}
    assert len(steps) == 12


@pytest.mark.parametrize("other", other_predictions(), ids=lambda other: f"{other.tool}-{other.id}")
def test_answer_is_whole(other: OtherPrediction) -> None:
    assert PUBLISHED[other.id].figure in PEAKS
    assert re.fullmatch(r"\d+(\.\d+)+", other.version)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", other.asked_on)
    assert other.how
    assert (other.predicted_bytes is None) == (not other.quantity)
    assert other.predicted_bytes is None or other.predicted_bytes > 10**8


def test_sizes_are_bytes() -> None:
    answers = {(other.tool, other.id): other.predicted_bytes for other in other_predictions()}
    # Four times the 2-byte weights, 30 % on top: 7,241,732,096 x 2 x 4 x 1.3.
    assert answers["hf-vram-calc", "fms-025"] == round(7_241_732_096 * 2 * 4 * 1.3)
    assert answers["vramcalc", "cift-007"] is None
