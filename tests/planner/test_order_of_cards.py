"""Cards that a source timed with one step: a plan puts no slower one before a faster one."""

from __future__ import annotations

from benchmarks.published_speed.__main__ import compared, order_of_cards, read_rows


def test_no_card_is_planned_before_one_that_was_measured_a_fifth_faster() -> None:
    rows = [row for row in read_rows("rows.csv") if row["model"] == "openai-community/gpt2-large"]
    undisturbed = [row for row in rows if row["kind"] == "eager"]
    cards = {row["gpu"] for row in undisturbed}
    assert cards == {"A100 80GB PCIe", "H100 SXM", "L4", "MI210", "MI250 (one of 2 GCDs)", "V100-PCIE-32GB"}

    pairs, reversed_ones = order_of_cards(compared(undisturbed))

    # Of one sequence: the H100 before all others, the MI210 and MI250 before V100 and L4, these two apart.
    # Of four: the H100 before the A100.
    assert len(pairs) == 4 + 4 + 1 + 1
    assert reversed_ones == []
