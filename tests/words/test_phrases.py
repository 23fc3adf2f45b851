from __future__ import annotations

import pytest

from qbench.comparison.methods import Difference
from qbench.words.phrases import difference_names, difference_text, listed, saving_text, span_text


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


def test_differences_have_both_sides_and_are_grouped_by_name():
    differs = [
        Difference("versions.torch", "2.12.0", "2.13.0"),
        Difference("git_commit", ("d4698f3", "abc"), "d4698f3"),
        Difference("versions.peft", None, "0.21.2"),
        Difference("git_dirty", False, True),
    ]
    assert [difference_text(each) for each in differs[:2]] == [
        "versions.torch: 2.12.0 against 2.13.0",
        "git_commit: d4698f3, abc against d4698f3",
    ]
    assert difference_text(differs[3]) == "git_dirty: no against yes"
    assert difference_names(differs) == ["versions (torch, peft)", "git_commit", "git_dirty"]
