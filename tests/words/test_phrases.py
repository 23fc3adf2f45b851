from __future__ import annotations

import pytest

from qbench.words.phrases import listed, saving_text, span_text


@pytest.mark.parametrize(
    ("percent", "text"),
    [
        (54.2, "54 % less"),
        (-8.0, "8 % more"),
        (0.7, "0.7 % less"),
        (0.4, "the same within 0.5 %"),
        (-0.4, "the same within 0.5 %"),
        (-99.0, "99 % more"),
        (-100.0, "2.0 times as much"),
        (-541.8, "6.4 times as much"),
    ],
)
def test_a_saving_in_words(percent: float, text: str):
    assert saving_text(percent) == text


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (41.0, 62.0, "41 to 62 % less"),
        (54.1, 54.3, "54 % less"),
        (0.2, 12.0, "up to 12 % less"),
        (-9.0, 0.1, "up to 9 % more"),
        (-9.0, 12.0, "9 % more to 12 % less"),
        (-207.0, -77.0, "77 % more to 3.1 times as much"),
        (-207.0, -150.0, "2.5 to 3.1 times as much"),
        (-158.0, 44.0, "2.6 times as much to 44 % less"),
        (0.0, 0.0, "the same within 0.5 %"),
    ],
)
def test_a_range_in_words(low: float, high: float, text: str):
    assert span_text(low, high) == text


def test_a_list_in_words():
    assert [listed(texts) for texts in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
