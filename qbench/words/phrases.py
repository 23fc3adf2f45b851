"""Shares and ranges of shares in words: '54 % less', '41 to 62 % less', '77 % more to 3.1 times as much'."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from qbench.units import plain_text

if TYPE_CHECKING:
    from qbench.comparison.methods import Difference


class Statement(str):
    """Sentences about one result: what leads, which a page may set larger, and the rest."""

    __slots__ = ("lead", "rest")

    lead: str
    rest: str

    def __new__(cls, lead: str, *rest: str) -> Statement:
        """Join the parts; empty ones are left out."""
        behind = " ".join(filter(None, rest))
        statement = super().__new__(cls, f"{lead} {behind}".strip())
        statement.lead, statement.rest = lead, behind
        return statement

    def followed_by(self, text: str) -> Statement:
        """Return the statement with more text at its end."""
        return Statement(self.lead, self.rest, text)


SAME_PERCENT = 0.5
"""Savings below this share are called the same."""

DOUBLE = -100
"""Percent saved below which a cost is given as a multiple."""


def saving_text(percent: float) -> str:
    """Return what is saved, in percent of the baseline, in words; a negative saving is a cost."""
    if abs(percent) < SAME_PERCENT:
        return f"the same within {SAME_PERCENT} %"
    if percent <= DOUBLE:
        return f"{_times(percent)} times as much"
    return f"{_digits(percent)} % {'less' if percent > 0 else 'more'}"


def span_text(low: float, high: float) -> str:
    """Return the range from the smallest to the largest saving in words, the one nearer to none first."""
    if saving_text(low) == saving_text(high):
        return saving_text(low)
    near, far = sorted((low, high), key=abs)
    if abs(near) < SAME_PERCENT:
        return f"up to {saving_text(far)}"
    if near * far < 0:
        return f"{saving_text(low)} to {saving_text(high)}"
    if near <= DOUBLE:
        return f"{_times(near)} to {saving_text(far)}"
    if far <= DOUBLE:
        return f"{saving_text(near)} to {saving_text(far)}"
    return f"{_digits(near)} to {saving_text(far)}"


def ratio_text(ratios: list[float]) -> str:
    """Return ratios as '0.77 times', or as '0.57 to 0.80 times' where they differ."""
    low, high = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    return f"{low} times" if low == high else f"{low} to {high} times"


def category_name(category: str) -> str:
    """Return a breakdown category in words: 'logits and loss'."""
    return _CATEGORIES.get(category, category)


_CATEGORIES = {
    "logits_loss": "logits and loss",
    "quant_state": "quantization state",
    "gathered": "gathered parameters",
    "communication": "communication buffers",
    "buckets": "gradient buckets",
}


def counted(count: int, what: str) -> str:
    """Return a count with its noun: '1 setting', '12 settings'."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def listed(texts: list[str]) -> str:
    """Return texts as a list within a sentence: 'a', 'a and b', 'a, b and c'."""
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))


def difference_text(difference: Difference) -> str:
    """Return a difference with both sides, for example 'versions.torch: 2.12.0 against 2.13.0'."""
    name, baseline, candidate = difference
    return f"{name}: {plain_text(baseline)} against {plain_text(candidate)}"


def difference_names(differs: Iterable[Difference]) -> list[str]:
    """Return the names of differences, those of one group together: 'versions (torch, peft)'."""
    groups: dict[str, list[str]] = {}
    for difference in differs:
        group, _, inner = difference.name.partition(".")
        groups.setdefault(group, []).append(inner)
    return [f"{group} ({', '.join(inner)})" if inner[0] else group for group, inner in groups.items()]


def _times(percent: float) -> str:
    return f"{1 - percent / 100:.1f}"


def _digits(percent: float) -> str:
    return f"{abs(percent):.0f}" if abs(percent) >= 1 else f"{abs(percent):.1f}"
