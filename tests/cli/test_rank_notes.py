"""What stands below the table of `qbench rank`."""

from __future__ import annotations

from datetime import date

import pytest

from qbench.catalog.hourly_prices import PriceSource
from qbench.cli.rank_notes import source_text


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ("2026-09-01", "aws (2026-09-01, 91 days old)"),  # 29 + 31 + 30 + 1 days
        ("2026-09-02", "aws (2026-09-02)"),
        ("2025-11 to 2026-10", "aws (2025-11 to 2026-10)"),
        ("", "aws (undated)"),
    ],
)
def test_a_price_says_when_it_was_seen_and_how_long_ago_once_that_is_long(seen: str, said: str) -> None:
    assert source_text(PriceSource("aws", seen), date(2026, 12, 1)) == said


def test_no_source_has_no_text() -> None:
    assert source_text(None) is None
